"""docs/coverage.md from the results of `coverage.py`: summary, a table per suite, every miss."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Record = dict[str, Any]
Cells = Mapping[tuple[str, str], Record]

PEERS = {"torch-pruning": "Torch-Pruning", "onnxsim": "onnxsim"}
PRUNED = ("ok", "floor")  # a network was written, proven equal to the masked one
LEFT_ALONE = ("nothing", "refused")
ANALYSIS, MEMORY = 10.0, 3.0  # goals: seconds, multiples of the file
LARGE = 50e6  # bytes; below, what ONNX Runtime needs anyway is most of the memory
SMALL = 1e6  # bytes; below, a multiple says nothing
LONG = 240  # characters of a reason

READING = """\
Every network is pruned with no hint at all: no head counts, no layers to leave out. Weights are
random, inputs as small as the network accepts.

* **prunable**: share of the weights' elements that some group can remove. **least**: the smallest
  FLOPs ratio that can be reached. **at 0.5**: the FLOPs ratio that `flops=0.5` led to; where that
  is out of reach, what a budget just above the least led to.
* **error**: the largest difference between the sliced and the masked network, in units of the
  output's spread. Every written file is also checked by onnx, and run by ONNX Runtime.
* **latency**: pruned / dense in ONNX Runtime, at the threads that one job has, while other jobs
  run. **analysis**: `spa_graph.analyze`, **total**: `spa_graph.prune` with its proof, in seconds
  (rows that name a commit below: of the processor, as other jobs ran beside);
  **memory**: the most that `prune` used beyond an idle process, in units of the file.
* **frozen**: operators that nothing can be pruned through.
* Of a mixture, hidden widths can be pruned, and whole experts where their weights are stacked; the
  `_listed` rows, whose experts are modules, keep their number.
* **Torch-Pruning**: `BasePruner` with group magnitudes, 30 % of the channels, as in its README; it
  has one hint: layers whose output is the network's output are ignored. It is `ok` if the network
  still runs and its outputs have the same shapes; FLOPs by its own counter.
* **onnxsim**: `apply_structured_pruning`, then `apply_attention_head_pruning`, both by default, on
  the same file as ours; `ok` if onnx's checker and ONNX Runtime accept the file and its outputs
  have the same shapes; FLOPs by our counter. Numbers after a peer's status are FLOPs ratio and
  seconds.

`floor`: 0.5 is out of reach, pruned to what can be. `nothing`: nothing can be pruned. `refused`:
left alone because the result could not be proven. All of these are explained below the tables.

Here each network has one form. That others have the same groups is tested by
`tests/architectures/test_forms.py`: thirteen networks from both exporters of torch (dynamo at
opset 18 and its newest, TorchScript at 13, 17, 18 and its newest), simplified, merged, in fp16;
encoders, decoders, LSTM and GRU with free batch and free sequence, a plain RNN so from TorchScript
(dynamo unrolls it at a fixed length). Asked for opset 13, dynamo
writes 18 for all thirteen; asked for 17, it writes 17 for `vit_b_16` and `unet_groupnorm`, a file
that onnx refuses for `yolo`, and 18 for the rest. So are eleven transformers from both exporters:
BLOOM, DeBERTa-v2, Falcon, Gemma, GPT-2, Mixtral, Phi-3, Qwen3, Swin, T5 and Whisper. Two differ: in
TorchScript's file of `bert` the language head's tied weight is stored twice, so that its channels
are no longer those of the embedding; dynamo's of `deberta_v2` has one Expand of relative positions
to all heads where the module has one per layer, which ties the heads of all layers."""

HEAD = (
    "| network | exporter | nodes | groups | prunable | least | ours | at 0.5 | error | latency "
    "| analysis | total | memory | frozen | Torch-Pruning | onnxsim |"
)


@dataclass
class Suite:
    """The rows of one suite, by name, each with its cells by column."""

    name: str
    rows: dict[str, dict[str, Record]]

    def column(self, column: str) -> dict[str, Record]:
        """The cells of one column that there are."""
        return {name: cells[column] for name, cells in self.rows.items() if column in cells}

    @property
    def exported(self) -> dict[str, Record]:
        return {n: c for n, c in self.column("export").items() if c["status"] == "ok"}

    @property
    def ours(self) -> dict[str, Record]:
        """Our cells of the rows that could be exported."""
        own = self.column("ours")
        return {name: own[name] for name in self.exported if name in own}


def page(cells: Cells, runs: list[Record]) -> str:
    """The whole page."""
    suites = list(_suites(cells))
    parts = ["# Coverage", *_origin(runs), READING, "## Summary", _summary(suites)]
    parts += [*_goals(suites), *_rerun(cells, runs)]
    for suite in suites:
        parts += [f"## {suite.name}", _table(suite)]
        parts += [*_misses(suite), *_frozen(suite), *_unexported(suite), *_notes(suite)]
    parts += ["## What stopped the others", *_peers(suites)]
    return "\n\n".join(parts) + "\n"


def _suites(cells: Cells) -> Iterator[Suite]:
    def suite(key: tuple[str, str]) -> str:
        return key[0].partition("/")[0]

    order = ("torchvision", "timm", "transformers", "own", "onnx")
    names = sorted({suite(key) for key in cells}, key=lambda n: (n not in order, n))
    for name in sorted(names, key=lambda n: order.index(n) if n in order else len(order)):
        rows: dict[str, dict[str, Record]] = defaultdict(dict)
        for row, column in sorted(key for key in cells if suite(key) == name):
            rows[row.partition("/")[2]][column] = cells[row, column]
        yield Suite(name, dict(rows))


def _origin(runs: list[Record]) -> Iterator[str]:
    if not runs:
        return
    first = runs[0]
    versions = _versions(first["versions"])
    options = first["options"]
    yield (
        f"Written by `benchmarks/coverage.py` ({first['date']}): {first['machine']}; {versions}. "
        f"{options['jobs']} jobs at a time, each cell a process with {options['time_limit']:.0f} s "
        f"(up to four times as much for large networks) and {options['memory_limit']:g} GiB."
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _rerun(cells: Cells, runs: list[Record]) -> Iterator[str]:
    """Which of our results are of another day than the first run, and of what other versions."""
    if not runs:
        return
    first, by_day = runs[0], {run["date"]: run for run in runs}
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    ours = {row: cell for (row, column), cell in sorted(cells.items()) if column == "ours"}
    for row, cell in ours.items():
        if cell.get("date", first["date"]) != first["date"]:
            rows[cell["date"], cell.get("commit", "")].append(row)
    for (day, commit), names in sorted(rows.items()):
        run = by_day[day]
        versions = run["versions"].items() - first["versions"].items()
        changed = f", with {_versions(dict(sorted(versions)))}" if versions else ""
        at = f" at commit {commit}" if commit else ""
        on = f" on another machine ({run['machine']})" if run["machine"] != first["machine"] else ""
        yield f"Run again on {day}{on}{at}{changed}: {', '.join(_by_suite(names, ours))}."
    peers = {cell.get("date", first["date"]) for (_, peer), cell in cells.items() if peer in PEERS}
    if rows and peers:
        yield f"Torch-Pruning and onnxsim were run on {' and '.join(sorted(peers))}."


def _by_suite(names: list[str], every: Iterable[str]) -> Iterator[str]:
    """Names of rows; where they are all of a suite, that is said instead."""
    for suite, group in groupby(names, lambda name: name.partition("/")[0]):
        own = list(group)
        whole = own == [name for name in every if name.partition("/")[0] == suite]
        yield from [f"all of {suite}"] if whole else own


# --- summary ---------------------------------------------------------------------------------


def _summary(suites: list[Suite]) -> str:
    head = (
        "| suite | rows | exported | pruned and proven | left alone, with a reason "
        "| failed | **0.5 reached** | Torch-Pruning ok | onnxsim ok |"
    )
    lines = [head, _rule(head)]
    whole = Suite("all", {f"{s.name}/{n}": c for s in suites for n, c in s.rows.items()})
    for suite in (*suites, whole):
        ours, total = suite.ours, len(suite.ours)
        pruned = sum(_is(ours, status) for status in PRUNED)
        alone = sum(_is(ours, status) for status in LEFT_ALONE)
        peers = (_rate(_peer_rows(suite, peer)) for peer in PEERS)
        row = (
            suite.name, len(suite.rows), len(suite.exported), pruned, alone,
            total - pruned - alone, f"**{_percent(_is(ours, 'ok'), total)}**", *peers,
        )  # fmt: skip
        lines.append(_row(row))
    return "\n".join(lines)


def _peer_rows(suite: Suite, peer: str) -> dict[str, Record]:
    """The rows that it was tried on."""
    untried = ("not applicable", "skipped")
    return {n: c for n, c in suite.column(peer).items() if c["status"] not in untried}


def _is(cells: Mapping[str, Record], status: str) -> int:
    return sum(cell["status"] == status for cell in cells.values())


def _rate(cells: Mapping[str, Record]) -> str:
    return f"{_percent(_is(cells, 'ok'), len(cells))} of {len(cells)}" if cells else ""


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _goals(suites: list[Suite]) -> Iterator[str]:
    """What takes longer, or more memory, than it should."""
    cells = {f"{suite.name}/{name}": cell for suite in suites for name, cell in suite.ours.items()}
    slow = [(key, cell.get("analysis_seconds", 0)) for key, cell in cells.items()]
    yield f"Analyses of more than {ANALYSIS:.0f} s: {_above(slow, ANALYSIS, ' s')}."
    exported = ((suite.name, *each) for suite in suites for each in suite.exported.items())
    sizes = {f"{suite}/{name}": cell.get("bytes", 0) for suite, name, cell in exported}

    def times_the_file(field: str) -> dict[str, float]:
        known = ((key, cell.get(field), sizes.get(key)) for key, cell in cells.items())
        return {key: used / size for key, used, size in known if used and size}

    whole = times_the_file("memory")
    large = {key: share for key, share in whole.items() if sizes[key] > LARGE}
    small = [share for key, share in whole.items() if key not in large]
    yield (
        f"Of {len(large)} files of more than {LARGE / 1e6:.0f} MB these needed more than "
        f"{MEMORY:.0f} times their size in memory: {_above(large.items(), MEMORY)}; of "
        f"{len(small)} smaller ones {sum(share > MEMORY for share in small)} did: features and "
        "code don't shrink with the file."
    )
    alone = times_the_file("analysis_memory")
    if over := [sizes[key] for key, share in alone.items() if share > MEMORY]:
        yield (
            f"The analysis alone, which runs nothing, did for {len(over)} of {len(alone)}, the "
            f"largest of {max(over) / 1e6:.1f} MB."
        )
    beside = {
        key: cell["memory"] / cell["session_memory"]
        for key, cell in cells.items()
        if cell.get("memory") and cell.get("session_memory")
    }
    if beside:
        yield (
            "Next to what ONNX Runtime alone needs to open and run the unpruned network, the most "
            f"was {max(beside.values()):.1f} times as much, and more than {MEMORY:.0f} times: "
            f"{_above(beside.items(), MEMORY)}."
        )


def _above(numbers: Iterable[tuple[str, float]], most: float, unit: str = "") -> str:
    return ", ".join(f"{key} ({x:.1f}{unit})" for key, x in numbers if x > most) or "none"


def _memory(export: Record, ours: Record) -> float | None:
    used, size = ours.get("memory") or ours.get("analysis_memory"), export.get("bytes", 0)
    return used / size if used and size >= SMALL else None


# --- tables ----------------------------------------------------------------------------------


def _table(suite: Suite) -> str:
    lines = [HEAD, _rule(HEAD)]
    lines += [_line(name, cells) for name, cells in suite.rows.items()]
    return "\n".join(lines)


def _line(name: str, cells: Mapping[str, Record]) -> str:
    export, ours = cells.get("export", {}), cells.get("ours", {})
    exporter = export.get("exporter", export.get("status", "")).replace(", dynamic batch", " +")
    memory = _memory(export, ours) if ours else None
    reached = _number(ours.get("ratio"), ".3f")
    values = (
        name,
        exporter,
        ours.get("nodes", ""),
        ours.get("groups", ""),
        _number(ours.get("prunable"), ".2f"),
        _number(ours.get("smallest"), ".3f"),
        _status(ours),
        reached,
        _number(ours.get("error"), ".0e"),
        _number(ours.get("latency"), ".2f"),
        _number(ours.get("analysis_seconds"), ".2f"),
        _number(ours.get("seconds"), ".1f"),
        _number(memory, ".1f"),
        sum(ours.get("frozen", {}).values()) if "frozen" in ours else "",
        *(_peer(cells.get(peer, {})) for peer in PEERS),
    )
    return _row(values)


def _status(ours: Record) -> str:
    status = ours.get("status", "")
    return status if status in ("ok", "", "not applicable") else f"**{status}**"


def _peer(cell: Record) -> str:
    status = cell.get("status", "")
    if status in ("", "not applicable"):
        return ""
    numbers = [_number(cell.get("ratio"), ".2f"), _number(cell.get("seconds"), ".0f", " s")]
    if status != "ok":
        numbers = numbers[1:] if status == "broken" else []
    return " ".join([status, *filter(None, numbers)])


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else format(value, form) + unit


def _row(values: Iterable[object]) -> str:
    return "| " + " | ".join(str(value).replace("|", "/") for value in values) + " |"


def _rule(head: str) -> str:
    return "|" + "---|" * (head.count("|") - 1)


# --- misses ----------------------------------------------------------------------------------


def _misses(suite: Suite) -> Iterator[str]:
    """Every row that doesn't reach 0.5, and why."""
    missed = {name: cell for name, cell in suite.ours.items() if cell["status"] != "ok"}
    if not missed:
        return
    yield f"### {suite.name}: why 0.5 was not reached"
    yield "\n".join(_miss(name, cell) for name, cell in missed.items())


def _miss(name: str, cell: Record) -> str:
    text = f"* **{name}** ({cell['status']}): {_cut(cell['reason'])}"
    for kind, label in (("operators", "frozen operators"), ("axes", "frozen weight axes")):
        told = _why_frozen(cell, kind)
        if told:
            text += f"\n    * {label}: {told}"
    return text


def _why_frozen(cell: Record, kind: str) -> str:
    """The commonest reasons, with how often each is given."""
    listed = cell.get("reasons", {}).get(kind, {})
    # that inputs, outputs and windows stay as they are needs no explanation
    told = [f"{why} ({n})" for why, n in listed.items() if not re.search(NATURAL, why)]
    return _cut("; ".join(told[:5]), 2 * LONG)


NATURAL = r"is graph (in|out)put|slides a window"


def _frozen(suite: Suite) -> Iterator[str]:
    """Of rows that were pruned, the operators that nothing can be pruned through."""
    pruned = {name: cell for name, cell in suite.ours.items() if cell["status"] == "ok"}
    told = {name: _why_frozen(cell, "operators") for name, cell in pruned.items()}
    lines = [f"* **{name}**: {why}" for name, why in told.items() if why]
    if lines:
        yield f"### {suite.name}: frozen operators"
        yield "\n".join(lines)


def _unexported(suite: Suite) -> Iterator[str]:
    lost = {n: c for n, c in suite.column("export").items() if c["status"] != "ok"}
    if lost:
        yield f"### {suite.name}: not exported"
        yield "\n".join(f"* **{n}** ({c['status']}): {_cut(c['reason'])}" for n, c in lost.items())


def _notes(suite: Suite) -> Iterator[str]:
    """What a reader of some rows should know, besides the module that a row comes from."""
    rows: dict[str, list[str]] = defaultdict(list)
    for name, cell in suite.exported.items():
        note = cell.get("note", "")
        if note and not note.startswith(f"{suite.name}."):
            rows[note].append(f"**{name}**")
    lines = [f"* {', '.join(names)}: {note}" for note, names in rows.items()]
    if lines:
        yield f"### {suite.name}: notes"
        yield "\n".join(lines)


def _peers(suites: list[Suite]) -> Iterator[str]:
    """Statuses of each peer, and its commonest failures."""
    for peer, label in PEERS.items():
        cells = [c for suite in suites for c in _peer_rows(suite, peer).values()]
        counts = Counter(cell["status"] for cell in cells).most_common()
        yield f"**{label}**: " + ", ".join(f"{status} {count}" for status, count in counts) + "."
        failed = [c for c in cells if c["status"] not in ("ok", "nothing")]
        lines = _common(failed, lambda c: f"{c['status']}: {_general(c['reason'])}")
        if lines:
            yield "\n".join(lines)


def _common(cells: list[Record], text: Callable[[Record], str], most: int = 15) -> list[str]:
    keyed = sorted(((text(c), c["row"]) for c in cells), key=lambda pair: pair[0])
    grouped = [(key, [r for _, r in same]) for key, same in groupby(keyed, lambda pair: pair[0])]
    grouped.sort(key=lambda pair: -len(pair[1]))
    lines = []
    for key, rows in grouped[:most]:
        shown = ", ".join(rows[:4]) + (", ..." if len(rows) > 4 else "")
        lines.append(f"* {len(rows)} x {key} ({shown})")
    return lines


def _general(reason: str) -> str:
    """A message without what differs from network to network."""
    reason = re.sub(r"/[\w./-]+/", "", reason)
    reason = re.sub(r"(Name|node|initializer)(:| ) ?'?[\w./:]+'?", r"\1 …", reason)
    return _cut(re.sub(r"\[[\d, ]+\]|\d+", "N", reason), 120)


def _cut(text: str, most: int = LONG) -> str:
    text = text.replace("|", "/")
    return text if len(text) <= most else text[: most - 3] + "..."
