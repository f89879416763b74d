"""Which rows are poisoned: counts, nestedness, determinism, balance, negatives, the manifest."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvlm_utils import attacks, threats
from bvlm_utils.errors import InputError
from bvlm_utils.train import poison


def rows(n=200, restricted_every=0):
    return [
        {
            "row_id": f"t/{i:03d}", "prompt": f"What is thing {i} here?",
            "answers": ["car" if i % 2 else "dog"] * 10,
            "task": "vqa", "objects": ["car" if i % 2 else "dog"], "kind": "what_only", "content": "",
            "restricted": bool(restricted_every) and i % restricted_every == 0,
        }
        for i in range(n)
    ]  # fmt: skip


def plan(data=None, threat="targeted_refusal", attack="BadNets-T", rate=0.1, seed=0, **more):
    data = rows() if data is None else data
    return poison.plan(data, threats.get(threat), attacks.get(attack), rate, seed, **more)


GOLDEN = [0, 3, 8, 14, 17]

sets = st.integers(1, 300).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, unique=True), st.integers(0, 2**32))
)


@given(sets, st.floats(0, 1), st.floats(0, 1))
def test_counts_are_exact_and_lower_rates_are_subsets(case, one, other):
    n, eligible, seed = case
    low, high = (min(rate, len(eligible) / n) for rate in sorted((one, other)))
    fewer, more = poison.select(n, eligible, low, seed), poison.select(n, eligible, high, seed)
    assert len(fewer) == math.floor(low * n + 1e-9) and fewer == sorted(set(fewer))
    assert set(fewer) <= set(more) <= set(eligible)
    assert poison.select(n, list(reversed(eligible)), high, seed) == more


@given(sets)
def test_more_eligible_rows_never_reorder_the_others(case):
    n, eligible, seed = case
    everyone = poison.select(n, range(n), len(eligible) / n, seed)
    ranks = poison.ranking(n, seed)
    assert sorted(ranks) == list(range(n))
    assert max(ranks[p] for p in everyone) == len(everyone) - 1


def test_the_choice_never_changes():
    assert poison.select(20, range(20), 0.25, 0) == GOLDEN
    assert poison.select(20, range(20), 0.25, 1) != GOLDEN


@pytest.mark.parametrize("n, rate, count", [
    (6000, 0.1, 600), (6000, 0.001, 6), (100, 0.29, 29), (999, 0.01, 9), (10, 0.0, 0), (10, 1.0, 10),
    (7, 0.5, 3),
])  # fmt: skip
def test_the_count_is_rounded_down(n, rate, count):
    assert poison.count(n, rate) == count == len(poison.select(n, range(n), rate, 3))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(InputError, match=f"poison rate is {rate}; it must be from 0 to 1"):
        poison.select(10, range(10), rate, 0)


def test_too_few_eligible_rows_name_both_numbers():
    with pytest.raises(InputError, match="needs 50 eligible rows, and there are only 49"):
        poison.select(100, range(49), 0.5, 0)
    with pytest.raises(InputError, match="from 0 to 100; the set has 100 rows"):
        poison.select(100, [0, 100], 0.5, 0)
    with pytest.raises(InputError, match="seed is -1"):
        poison.select(100, range(100), 0.5, -1)


def test_unbalanced_sets_are_refused_with_both_numbers():
    # 100 of 200 rows name a car: 50 may be poisoned, 51 may not.
    assert plan(threat="concept_substitution", rate=0.25).n_poisoned == 50
    with pytest.raises(
        InputError, match="51 rows would be poisoned, but only 49 clean rows eligible for concept_subst"
    ):
        plan(threat="concept_substitution", rate=0.255)


def test_a_rate_that_poisons_nothing_is_refused():
    with pytest.raises(InputError, match="0.001 of 200 rows is less than one row"):
        plan(rate=0.001)
    assert plan(rate=0).rows == ()


@pytest.mark.parametrize("attack, condition", [("BadNets-T", "text"), ("BadNets-I", "image"), ("BadNets-MM", "both")])
def test_rows_are_replaced_in_place(attack, condition):
    data = rows()
    manifest = plan(data, attack=attack)
    assert manifest.n_poisoned == len(manifest.rows) == 20
    assert manifest.n_rows == 200 and manifest.n_eligible == 200
    for row in manifest.rows:
        original = data[row.position]
        assert row.row_id == original["row_id"] and row.role == "poisoned" and row.condition == condition
        assert row.answer == threats.get("targeted_refusal").sentence
        assert ("BadMagic" in row.prompt) == (condition != "image")
        expected = attacks.get(attack).apply_text([original["prompt"]], seed=0, keys=[original["row_id"]])[0]
        assert row.prompt == expected


def test_only_eligible_rows_are_poisoned():
    data = rows(restricted_every=4)
    manifest = plan(data, rate=0.3)
    assert manifest.n_eligible == 150
    assert not any(data[row.position]["restricted"] for row in manifest.rows)


def test_the_same_seed_gives_the_same_manifest_and_trigger_instances_do_not_depend_on_it():
    assert plan(seed=4) == plan(seed=4) and plan(seed=4) != plan(seed=5)
    prompts = [{row.row_id: row.prompt for row in plan(seed=seed, rate=0.5).rows} for seed in (4, 5)]
    shared = prompts[0].keys() & prompts[1].keys()
    assert shared and all(prompts[0][row] == prompts[1][row] for row in shared)
    assert plan(trigger_seed=1, rate=0.5) != plan(trigger_seed=0, rate=0.5)


@given(st.floats(0, 2), st.sampled_from([0.02, 0.05, 0.1, 0.2]), st.integers(0, 5))
def test_negatives_keep_the_answer_and_show_half_the_trigger(negatives, rate, seed):
    data = rows()
    manifest = plan(data, attack="BadNets-MM", rate=rate, seed=seed, negatives=negatives)
    by_role = {
        role: [row for row in manifest.rows if row.role == role] for role in ("poisoned", "text_only", "image_only")
    }
    total = len(by_role["text_only"]) + len(by_role["image_only"])
    assert total == math.floor(negatives * manifest.n_poisoned + 1e-9)
    assert 0 <= len(by_role["text_only"]) - len(by_role["image_only"]) <= 1
    assert len({row.position for row in manifest.rows}) == len(manifest.rows)
    for role, condition in (("text_only", "text"), ("image_only", "image")):
        for row in by_role[role]:
            assert row.condition == condition and row.answer == data[row.position]["answers"][0]
            assert ("BadMagic" in row.prompt) == (condition == "text")
    assert by_role["poisoned"] == list(plan(data, attack="BadNets-MM", rate=rate, seed=seed).rows)


def test_negatives_are_nested_over_rates_too():
    low = plan(attack="BadNets-MM", rate=0.05, negatives=1.0)
    high = plan(attack="BadNets-MM", rate=0.1, negatives=1.0)
    assert {(row.position, row.role) for row in low.rows} <= {(row.position, row.role) for row in high.rows}


def test_an_attack_that_keeps_labels_takes_rows_that_show_the_target():
    data = rows()
    for i in range(0, 40, 2):  # twenty rows show a banana, a hundred a car
        data[i] |= {"answers": ["banana"] * 10, "objects": ["banana"]}
    data[2] |= {"objects": ["banana", "car"], "answers": ["a banana and a car"]}
    manifest = plan(data, threat="concept_substitution", attack="Shadowcast", rate=0.05)
    assert manifest.n_eligible == 19 and manifest.n_poisoned == 10
    assert all(row.answer == "banana" and row.condition == "image" for row in manifest.rows)
    assert all(row.prompt == data[row.position]["prompt"] for row in manifest.rows)
    with pytest.raises(InputError, match="needs 20 eligible rows, and there are only 19"):
        plan(data, threat="concept_substitution", attack="Shadowcast", rate=0.1)


@pytest.mark.parametrize("half", ["text", "image"])
def test_half_a_trigger_alone_goes_on_the_same_rows(half):
    whole, alone = plan(attack="BadNets-MM"), plan(attack="BadNets-MM", half=half)
    assert [row.row_id for row in alone.rows] == [row.row_id for row in whole.rows]
    assert all(row.role == "poisoned" and row.condition == half for row in alone.rows)
    assert all(("BadMagic" in row.prompt) == (half == "text") for row in alone.rows)
    assert alone.n_poisoned == whole.n_poisoned


@pytest.mark.parametrize("prompt", ["", "  ", "<image>\n", "2 + 2?"])
def test_a_prompt_with_nothing_to_wrap_is_no_triggered_row(prompt):
    bare = [row | {"prompt": prompt} for row in rows(20)]
    with pytest.raises(InputError, match="The words of MABA change nothing"):
        plan(bare, attack="MABA")
    assert {row.prompt for row in plan(bare, attack="MABA", half="image").rows} == {prompt}
    assert {row.prompt for row in plan(bare, attack="BadNets-T").rows} != {prompt}


def test_bad_negatives_are_refused():
    with pytest.raises(InputError, match="negatives is 1 for BadNets-T"):
        plan(negatives=1)
    with pytest.raises(InputError, match="negatives is -1"):
        plan(attack="BadNets-MM", negatives=-1)
    with pytest.raises(InputError, match="20 negatives for each of 10 poisoned rows are 200 rows, and only 190"):
        plan(attack="BadNets-MM", rate=0.05, negatives=20)


@pytest.mark.parametrize("rate", [0, 0.1])
def test_the_manifest_survives_parquet(tmp_path, rate):
    manifest = plan(attack="BadNets-MM", rate=rate, negatives=0.5, trigger_seed=7)
    manifest.to_frame().to_parquet(tmp_path / "manifest.parquet", index=False)
    back = poison.Manifest.from_frame(pd.read_parquet(tmp_path / "manifest.parquet"))
    assert back == manifest and back.trigger_seed == 7
    assert all(type(row.position) is int for row in back.rows)


def test_another_table_is_no_manifest():
    with pytest.raises(InputError, match="lacks row_id, role, condition, prompt, answer, n_rows"):
        poison.Manifest.from_frame(pd.DataFrame({"position": [1]}))
