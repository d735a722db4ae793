"""Logs memory and load of the device, and of the host."""

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from everstep.callbacks.base import Callback
from everstep.errors import ConfigurationError

if TYPE_CHECKING:
    from everstep.module import LightningModule
    from everstep.trainer import Trainer


class DeviceStatsMonitor(Callback):
    """At log steps, `DeviceStatsMonitor.<hook>/<value>`: of CUDA torch's memory statistics and, where NVML answers,
    utilisation; of the host load and memory in percent. Each rank looks at its own, rank 0's are logged.

    Args:
        cpu_stats: of the host as well; None: if it is what trains. Needs psutil.
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self._cpu_stats = cpu_stats

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        if stage == "fit" and not trainer.loggers:
            raise ConfigurationError(
                "DeviceStatsMonitor has nothing to log to, since the Trainer has no logger: give it one, or take "
                "DeviceStatsMonitor away"
            )
        on_host = trainer.strategy.root_device.type == "cpu"
        self._host = on_host if self._cpu_stats is None else self._cpu_stats
        if self._host:
            try:
                import psutil  # noqa: F401
            except ImportError as error:
                raise ConfigurationError(
                    f"DeviceStatsMonitor needs psutil for the host's load ({error}): pip install psutil, or "
                    "cpu_stats=False"
                ) from None

    def on_train_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int
    ) -> None:
        self._log(trainer, "on_train_batch_start", trainer.is_log_step)

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The step is counted already.
        every = trainer.log_every_n_steps
        self._log(trainer, "on_train_batch_end", bool(every) and trainer.batches_that_stepped % every == 0)

    def _log(self, trainer: "Trainer", hook: str, now: bool) -> None:
        if not now or not trainer.is_global_zero:
            return
        values = self.stats(trainer)
        step = max(trainer.batches_that_stepped - (hook == "on_train_batch_end"), 0)
        trainer.logs.send(
            {f"DeviceStatsMonitor.{hook}/{name}": value for name, value in values.items()}, step, trainer.current_epoch
        )

    def stats(self, trainer: "Trainer") -> dict[str, float]:
        """What there is to know of device and host right now: bytes, and percent."""
        device = trainer.strategy.root_device
        found = dict(trainer.accelerator.stats(device))
        if device.type == "cuda":
            with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # no NVML
                found["utilization_percent"] = float(torch.cuda.utilization(device))
        if self._host:
            import psutil

            found["cpu_percent"] = float(psutil.cpu_percent())
            found["cpu_vm_percent"] = float(psutil.virtual_memory().percent)
            found["cpu_swap_percent"] = float(psutil.swap_memory().percent)
        return found
