"""How much disk a run needs, computed from the base's files and config before hours are spent on it.

Bytes throughout.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from appliance.engines import master_weights, memory
from appliance.findings import Finding
from appliance.machine import device, disk
from appliance.recipe.fields import TrainSection, TuningSection
from appliance.rundir import directory as rundir_directory
from appliance.weights import gguf_convert

MARGIN = 1.1
FILES = 500  # of a run and its release, with temporary ones; a base of 100 shards is merged into as many
RESERVE_BYTES = device.OVERHEAD_BYTES // 2  # logs, pictures, the release's cards, other users of the volume
# What one process of the proof leaves for the other: at most 60 MB of logits (weights/proof.py), 64 KiB of each merged
# tensor.
PROOF_BYTES = 128 << 20


class Base(Protocol):
    """What the arithmetic needs from a base model; base_model/base.py has the one that runs use."""

    @property
    def dir(self) -> Path: ...
    @property
    def coming(self) -> dict[str, int]: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def tokenizer_bytes(self) -> int: ...
    @property
    def config(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Demand:
    """The parts of what a run writes. The rehearsal's scratch is smaller, and removed before any of them."""

    checkpoints: int
    trained: int  # the adapter, or the whole model, beside its checkpoints
    merged: int
    release: int  # nothing if the file system has hard links
    proof: int
    gguf: int = 0  # of the types that are released, and the 16 bits that K types are made from
    download: int = 0  # of the base, if the Hub client's cache is on the same volume

    def of(self, stages: Collection[str]) -> Demand:
        """What is left of it if only these stages are still to run."""
        rest = self if "train" in stages else replace(self, checkpoints=0, trained=0)
        rest = rest if "merge" in stages else replace(rest, merged=0, proof=0)
        return rest if "publish" in stages else replace(rest, release=0, gguf=0)

    @property
    def net(self) -> int:
        """The parts alone."""
        return sum(asdict(self).values())

    @property
    def total(self) -> int:
        """With the margin and the reserve."""
        return with_margin(self.net)

    def describe(self) -> str:
        """'checkpoints 64.0 MiB, merged 2.0 GiB, …' without the small ones."""
        return ", ".join(f"{name} {disk.human(size)}" for name, size in asdict(self).items() if size >= 1 << 20)


def of_run(
    base: Base, tuning: TuningSection, train: TrainSection, *, has_hard_links: bool, gguf: Sequence[str] = ()
) -> Demand:
    """A whole run from training to the release. `gguf`: types of GGUF files that are still to be made for it.

    One checkpoint more than are kept: the next is complete before the oldest is removed. If the base's shape is
    unknown, its adapters count as nothing, and the reserve has to cover them.
    """
    weights, parameters, tokenizer = base.weights_bytes, base.parameters, 0
    if tuning.method == "full":
        kept = parameters * master_weights.WEIGHT_BYTES
        shape = memory.shape_of(base.config)
        embeddings = shape.vocabulary * shape.hidden if shape else parameters  # at worst
        checkpoint = kept + master_weights.moments_bytes(parameters, embeddings, train.optimizer)
        trained = 0 if has_hard_links else kept
    else:
        tokenizer, shape = base.tokenizer_bytes, memory.shape_of(base.config)
        adapters = memory.adapter_parameters(shape, tuning) if shape else 0
        moments = memory.ADAPTER_BYTES[train.optimizer] - 8  # without the weight and its gradient
        checkpoint, trained = adapters * (4 + moments) + tokenizer, adapters * 4 + tokenizer
    return Demand(
        checkpoints=(rundir_directory.CHECKPOINTS_KEPT + 1) * checkpoint,
        trained=trained,
        merged=weights + tokenizer,
        release=0 if has_hard_links else weights + trained + gguf_convert.bytes_of(parameters, gguf),
        proof=PROOF_BYTES,
        gguf=gguf_convert.bytes_of(parameters, gguf),
    )


def of_stages(
    base: Base,
    tuning: TuningSection,
    train: TrainSection,
    stage_dir: Path,
    ahead: Collection[str],
    kept: Collection[str],
    gguf: Sequence[str] = (),
) -> list[Finding]:
    """`findings` for the stages `ahead`; `kept`: those whose present files will be overwritten, and count as free.
    `gguf`: as `of_run`.
    """
    demand = of_run(base, tuning, train, has_hard_links=disk.has_hard_links(stage_dir), gguf=gguf).of(ahead)
    held, coming = held_bytes(stage_dir.parent, kept), sum(base.coming.values())
    return findings(demand, stage_dir, held=held, base_dir=base.dir, coming=coming)


def findings(demand: Demand, stage_dir: Path, *, held: int, base_dir: Path, coming: int) -> list[Finding]:
    """Room for what is to be downloaded and written, on each volume.

    `held`: bytes of the demand that are there already; `coming`: bytes of the base that are still to be downloaded.
    """
    fix = "free space, or use --runs-dir" + ("; one with hard links needs less" if demand.release else "")
    few = [one for folder in (stage_dir, *([base_dir] if coming else [])) for one in inodes(folder)]
    if not coming or disk.is_same_volume(base_dir, stage_dir):
        return [finding(replace(demand, download=coming), stage_dir, held=held, fix=fix), *few[:1]]
    fix_base = f"free space in {disk.nearest(base_dir)}, or set HF_HOME to a folder on another disk"
    needed, free = int(coming * MARGIN), disk.free_disk_bytes(base_dir)
    return [
        finding(demand, stage_dir, held=held, fix=fix),
        _finding("disk for the base", free, needed, disk.human(needed), fix_base),
        *few,
    ]


def inodes(folder: Path) -> list[Finding]:
    """A finding only if the volume of `folder` takes too few further files, whatever bytes are free on it."""
    free = disk.free_inodes(folder)
    if free is None or free >= FILES:
        return []
    mount = disk.mount_of(folder)
    fix = f"remove files from {mount}: their number counts, not their size (`df -i {mount}` shows it)"
    return [Finding(f"inodes of {mount}", f"{free} free", str(FILES), "fails", fix)]


def finding(demand: Demand, folder: Path, *, held: int = 0, freed: int = 0, fix: str) -> Finding:
    """Room on the volume of `folder` for what the run has still to write there.

    `held`: bytes of the demand that are there already. `freed`: bytes in use that will be free by then. A demand
    without anything large only warns.
    """
    needed, free = max(demand.total - held, RESERVE_BYTES), disk.free_disk_bytes(folder) + freed
    parts = disk.human(needed) + (f" ({demand.describe()})" if demand.net else "")
    return _finding("disk", free, needed, parts, fix, is_required=bool(demand.net))


def _finding(what: str, free: int, needed: int, shown: str, fix: str, *, is_required: bool = True) -> Finding:
    if needed <= free:
        return Finding(what, disk.human(free), shown, "ok")
    return Finding(what, disk.human(free), shown, "fails" if is_required else "warning", fix)


def with_margin(needed: int) -> int:
    return int(needed * MARGIN) + RESERVE_BYTES


def held_bytes(run_path: Path, stages: Collection[str] = ("train", "merge")) -> int:
    """How much of what `of_run` counts is already in the run directory's folders of these stages."""
    return disk.size_of(*(run_path / name for name in ("train", "merge") if name in stages))
