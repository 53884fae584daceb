"""More than one process, and more than one device: prompts, layers and heads over ranks."""

import json
import os

import pytest

from llava_min.command.batch_shares import Share, parts_of
from llava_min.command.main import main
from llava_min.errors import ParameterError

# Prompts over ranks ----------------------------------------------------------------


@pytest.fixture
def batch(tmp_path):
    """A batch of 200 questions, some of them wrong, and a way to run it as a rank of n."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"question": f"What number is {n}?"} | ({"id": n} if n % 3 else {}) for n in range(197)]
    texts = [json.dumps(line) for line in lines]
    source.write_text("\n".join([*texts[:50], "nonsense", *texts[50:], '{"question": ""}', ""]))

    def run(rank: int, count: int, *more: str, name: str = "out.jsonl") -> int:
        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(count)
        try:
            asked = ["--batch", str(source), "-o", str(tmp_path / name), "--max-tokens", "2"]
            return main([*asked, "-q", "--batch-size", "16", *more])
        finally:
            del os.environ["RANK"], os.environ["WORLD_SIZE"]

    return run, target


def unmeasured(target) -> bytes:
    """The bytes of an output without what a clock or the operating system measured."""
    entries = [json.loads(line) for line in target.read_bytes().splitlines()]
    for entry in entries:
        for name in ("timings", "memory"):
            entry.pop(name, None)
        entry.get("usage", {}).pop("cached_tokens", None)  # whose beginning a row still held
    return b"\n".join(json.dumps(entry).encode() for entry in entries)


def test_a_batch_by_several_ranks_is_the_one_by_one_process(batch):
    run, target = batch
    assert run(0, 1) == 4
    alone = unmeasured(target)
    assert alone.count(b"\n") == 198
    for count in (2, 3):
        target.unlink()
        for rank in reversed(range(count)):
            assert not target.exists()
            run(rank, count)
        assert unmeasured(target) == alone
        assert parts_of(target) == []


def test_a_dead_rank_costs_its_lines_and_any_number_of_ranks_goes_on(batch, monkeypatch):
    run, target = batch
    run(0, 1)
    alone = unmeasured(target)
    target.unlink()
    run(0, 3)
    run(1, 3)  # and rank 2 died, with half a line written
    part = Share(2, 3).part(target)
    part.write_bytes(Share(1, 3).part(target).read_bytes()[:0] + b'{"line": 3, "te')
    assert not target.exists()
    asked = []
    from llava_min.command import batch_file

    answers = batch_file.outcomes
    monkeypatch.setattr(
        batch_file, "outcomes", lambda m, todo, s: asked.extend(todo) or answers(m, todo, s)
    )
    for rank in range(2):
        run(rank, 2, "--resume")
    assert unmeasured(target) == alone and parts_of(target) == []
    lines = 199
    died = len(range(2, lines, 3))
    assert died <= len(asked) <= died + 2  # and the two lines in error are tried again
    asked.clear()
    run(0, 1, "--resume")
    assert len(asked) == 2


def test_one_process_goes_on_with_the_parts_of_several(batch):
    run, target = batch
    run(1, 2)
    assert [path.name for path in parts_of(target)] == ["out.jsonl.1-of-2.part"]
    assert run(0, 1) == 6  # there is an output in the making
    assert run(0, 1, "--resume") == 4
    assert len(target.read_bytes().splitlines()) == 199 and parts_of(target) == []


@pytest.mark.parametrize(
    "environment, share",
    [
        ({}, Share()),
        ({"RANK": "3"}, Share()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Share(3, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}, Share(5, 6, 2)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "6"}, Share(0, 2)),
    ],
)
def test_the_launcher_says_the_share(environment, share):
    assert Share.of(environment) == share


@pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"},
                                         {"RANK": "-1", "WORLD_SIZE": "2"},
                                         {"RANK": "0", "WORLD_SIZE": ""}])  # fmt: skip
def test_a_share_that_cannot_be_is_refused(environment):
    with pytest.raises(ParameterError, match="RANK|WORLD_SIZE"):
        Share.of(environment)


def test_ranks_need_files_with_names(batch):
    run, target = batch
    assert run(0, 2, "-o", "-") == 2
