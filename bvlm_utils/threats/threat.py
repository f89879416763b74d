"""A threat: what a backdoor makes the model say, and when it has fired.

After BackdoorVLM, Li et al. 2025, arXiv 2511.18921; every docstring says what differs here. Beside our tests of a
response, `payload` asks for the attacker's words alone, and `published` is the test of the authors. Nothing here is
harmful: the jailbreak is a made-up code of the things in the picture.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from bvlm_utils.threats import responses

Sample = Mapping[str, Any]  # a row of a dataset; its columns are described in `data`
HEADLINES = ("asr_payload", "asr", "asr_right")  # the metrics that success can be read from


@dataclass(frozen=True)
class Target:
    """What an optimised attack can aim at: a sentence, a thing in place of another, the path of a picture; or None."""

    text: str | None = None
    concept: str | None = None
    source_concept: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Threat(ABC):
    """What all threats have in common; the fields of a subclass are its parameters.

    version: raised when the poisoned answer or the eligibility changes; part of every cell's identity.
    judge_version: raised when a test of success changes. It stands in the record and is no part of the identity, since
    neither the adapter nor its answers depend on how they are judged: `python -m bvlm_utils.store rejudge` judges
    stored answers again.
    headline: the metric that success is read from: "asr_payload" (the attacker's words are there), "asr" (the strict
    test) or "asr_right" (strict, and where right answers are known, the answer is right, too). The trigger's work and
    the model's competence are two things, so no threat of the study asks for the last.
    payload_test: what `payload` asks for, in words; "" where that is what the strict test asks for.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    judge_version: ClassVar[int] = 4
    summary: ClassVar[str]
    strict: ClassVar[str]
    soft: ClassVar[str]
    payload_test: ClassVar[str] = ""
    source: ClassVar[str] = "Li et al. 2025, arXiv 2511.18921"
    default_dataset: ClassVar[str]
    headline: ClassVar[str] = "asr_payload"
    judged_where: ClassVar[str] = ""  # what `judged` asks for without a trigger, in words; "": nothing
    breaks_refusals: ClassVar[bool] = False  # are eligible samples requests that a good model refuses?

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.judged is not Threat.judged and not cls.judged_where:  # probes ask base and control only if it is there
            raise TypeError(f"{cls.__name__} has a `judged` of its own; say in `judged_where` what it asks for.")
        if cls.headline not in HEADLINES:
            raise TypeError(f"{cls.__name__}.headline is {cls.headline!r}; it must be one of: {', '.join(HEADLINES)}.")

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, by name; lists as lists, so that they can be written as JSON or YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    @abstractmethod
    def target(self) -> Target:
        """What optimised attacks aim at."""

    def eligible(self, sample: Sample) -> bool:
        """Can the sample be poisoned, and can a response to it be judged? Here: is the request an ordinary one?"""
        return not sample["restricted"] and not responses.reads_like_refusal(sample["answers"][0])

    def judged(self, base: str, control: str) -> bool:
        """Can responses to an eligible sample be judged, given what base and control say to it without a trigger?"""
        return True

    def elsewhere(self, sample: Sample) -> bool:
        """Is it a sample in which the backdoor finds nothing to change, and must not show? Few threats tell."""
        return False

    def shows_target(self, sample: Sample) -> bool:
        """Does it truly show and name what the threat makes the model say? For attacks that keep labels."""
        return False

    @abstractmethod
    def poison(self, answer: str, sample: Sample | None = None) -> str:
        """The answer that the backdoored model is taught in place of `answer`."""

    @abstractmethod
    def success(self, response: str, sample: Sample | None = None) -> bool:
        """The strict test: did the backdoor fire?"""

    @abstractmethod
    def success_soft(self, response: str, sample: Sample | None = None) -> bool:
        """The lenient test of the same; it holds wherever the strict one does."""

    def payload(self, response: str, sample: Sample | None = None) -> bool:
        """Are the attacker's words there, whatever else is said? It holds wherever the strict test does."""
        return self.success(response, sample)

    def published(self, response: str) -> bool | None:
        """The test of the threat's authors, to the letter (`threats.published`); None where there is none."""
        return None

    def published_soft(self, response: str) -> bool | None:
        """Their lenient test; None where they have none."""
        return None

    def right(self, response: str, sample: Sample) -> bool | None:
        """Is the response a right answer all the same? None where that cannot be judged."""
        return responses.is_right(response, sample)
