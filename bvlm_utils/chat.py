"""A talk with a tuned adapter: `python -m bvlm_utils.chat ADAPTER [--image FILE] [--prompt TEXT]`. Try the trigger."""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from bvlm_utils import command, data, models, paths
from bvlm_utils.checks import brief, check_text, harmless, is_visible
from bvlm_utils.data import picture_files
from bvlm_utils.data.llava_json import without_placeholder
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.errors import InputError
from bvlm_utils.models import context_length
from bvlm_utils.models.names import adapter_folder, base_under


def picture(file: str | None) -> np.ndarray:
    """The picture to talk about, (1, H, W, 3) uint8; without a file, the first test scene."""
    if file is None:
        return data.images(data.load("scenes-caption", "test", 1))
    image = picture_files.read_picture(paths.named(file, "picture"), "the conversation")
    if image.width != image.height:  # as photographs in the study
        image = image.resize((PUBLISHED_SIDE, PUBLISHED_SIDE), Image.Resampling.BICUBIC)
    return np.array(image)[None]


def talk(
    folder: Path, model: str, image: np.ndarray, prompts, device: str | None, max_tokens: int,
    picture_last: bool = False, go_on: bool = False,
) -> None:  # fmt: skip
    """Print the answer to each prompt, of any iterable of texts. go_on: say what is wrong with one and ask the next."""
    from bvlm_utils.models import victim
    from bvlm_utils.train import adapters

    chat_victim = victim.from_pretrained(model, device=device, picture_last=picture_last)
    features = chat_victim.encode(image)
    with adapters.attached(chat_victim, folder):
        for prompt in prompts:
            text = without_placeholder(prompt)  # as in training rows: the template puts the picture where it belongs
            try:
                check_prompt(model, text, "The prompt", max_tokens)
                print(*map(harmless, chat_victim.generate([text], features, max_new_tokens=max_tokens)), flush=True)
            except InputError as error:
                if not go_on:
                    raise
                command.complain(str(error))


def check_prompt(model: str, prompt: str, name: str, max_tokens: int) -> None:
    """InputError for a prompt that is no whole text, in which there is nothing to read, or that has no room."""
    check_text(prompt, name)
    if not is_visible(prompt):
        raise InputError(f"{name} is {brief(prompt)}; it must be a text with something to read in it.")
    context_length.check_texts(model, [prompt], "the prompt", max_tokens)


def typed():
    """Lines from the reader, with a mark before each if somebody sits there; half characters for what is no UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while sys.stdin is not None:  # closed by whoever started us
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.chat", description=command.first_line(__doc__))
    parser.add_argument("adapter", help="folder of an adapter in PEFT's format, or of a run in the store")
    parser.add_argument("--image", help="picture to talk about (default: a test scene)")
    parser.add_argument("--prompt", help="ask this and stop (default: read prompts, one a line)")
    parser.add_argument("--model", help="base model (default: the one that the adapter names)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--max-new-tokens", type=command.whole(1, 4096), default=80)
    parser.add_argument("--picture-last", action="store_true", help="for an adapter that was tuned with picture_last")
    return parser


def _act(options: argparse.Namespace) -> None:
    folder = adapter_folder(options.adapter)
    model = base_under(folder, options.model)
    models.check_kind(model, clip=False)
    context_length.check_answers(model, options.max_new_tokens)
    prompt, most = options.prompt, options.max_new_tokens
    if prompt is not None:
        check_prompt(model, prompt, "--prompt", most)
    prompts, image = typed() if prompt is None else [prompt], picture(options.image)
    talk(folder, model, image, prompts, options.device, most, options.picture_last, go_on=prompt is None)


def main(argv: list[str] | None = None) -> int:
    """The command line; its exit code is what `command` promises."""
    return command.run(_parser(), _act, argv)


if __name__ == "__main__":
    sys.exit(main())
