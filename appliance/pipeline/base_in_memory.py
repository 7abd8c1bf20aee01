"""The base that training has left in the memory of this process: the merge takes it, and it goes before the proof.

In a rehearsal it stays, if there is room, for the training that follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.weights import proof_place

if TYPE_CHECKING:
    from appliance.base_model.base import Base
    from appliance.engines.engine import Engine
    from appliance.machine.device import Device


@dataclass(frozen=True)
class BaseInMemory:
    """`engine`: None if nothing in this process has loaded a model. `wanted_again`: whether a training follows."""

    engine: Engine | None
    of: Base
    device: Device
    wanted_again: bool

    def base(self) -> Any:
        """The base as it was loaded, its weights untouched; None if it is not in memory."""
        return self.engine.kept_base(self.of.dir) if self.engine else None

    def make_room(self) -> None:
        """Frees its memory, unless it is wanted again and the proof, which loads models by itself, has ample room."""
        if self.engine is None:
            return
        self.engine.release(keep_base=self.wanted_again)
        if self.engine.kept_bytes and not proof_place.has_ample_room(self.of.dir, self.of.stored_dtype, self.device):
            self.engine.release()
