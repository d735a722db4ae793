"""Arguments that do not exist: those of Lightnings are told what takes their place, others the nearest name."""

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from everstep.errors import ConfigurationError

_DEVICES = 'devices and accelerator, such as Trainer(accelerator="gpu", devices=2)'
_CKPT_PATH = "trainer.fit(model, ckpt_path=…)"
_LOADERS = "train_dataloaders, with an s: a loader, or several"

_OF_STRATEGIES = {
    "accelerator": "Trainer(accelerator=…)",
    "parallel_devices": "Trainer(devices=…)",
    "cluster_environment": "nothing: what launchers, Kubernetes and SLURM set is read",
    "checkpoint_io": "ModelCheckpoint(dirpath=…) with a path or a URL",
    "precision_plugin": "Trainer(precision=…), or plugins=… with a Precision",
}
_WHOLE = "nothing: a .ckpt is one file of whole tensors, a TrainingRun's own checkpoints are of shards"
_OF_FSDP = {
    **_OF_STRATEGIES,
    "state_dict_type": _WHOLE,
    "activation_checkpointing": "activation_checkpointing_policy=…",
    "limit_all_gathers": "nothing: FSDP2 does so by itself",
    "use_orig_params": "nothing: with FSDP2 parameters are the module's own",
    "sync_module_states": "nothing: rank 0's parameters are those of all",
    "forward_prefetch": "nothing: FSDP2 gathers ahead by itself",
    "backward_prefetch": "nothing: FSDP2 gathers ahead by itself",
}
_ZERO = 'config={"zero_optimization": {…}}, with DeepSpeed\'s own names'

#: What a callable takes or took in Lightning and not here, and what to do.
FORMER: dict[str, dict[str, str]] = {
    "DDPStrategy": {
        **_OF_STRATEGIES,
        "broadcast_buffers": "nothing: buffers are the rank's own in training, rank 0's where they are saved",
        "ddp_comm_state": "nothing: gradients are averaged as they are",
        "ddp_comm_hook": "nothing: gradients are averaged as they are",
        "ddp_comm_wrapper": "nothing: gradients are averaged as they are",
        "model_averaging_period": "nothing: gradients are averaged, so that models are equal",
    },
    "FSDPStrategy": _OF_FSDP,
    "ModelParallelStrategy": {**_OF_FSDP, "save_distributed_checkpoint": _WHOLE},
    "DeepSpeedStrategy": {
        **_OF_STRATEGIES,
        "zero_optimization": 'stage=1, 2 or 3; to divide nothing, strategy="ddp"',
        "allgather_bucket_size": _ZERO,
        "reduce_bucket_size": _ZERO,
        "overlap_comm": _ZERO,
        "contiguous_gradients": _ZERO,
        "sub_group_size": _ZERO,
        "nvme_path": _ZERO,
        "loss_scale": "precision=…: 16-mixed does not go with it, and bf16 needs no scale",
        "logging_level": 'logging.getLogger("DeepSpeed").setLevel(…)',
    },
    "Trainer": {
        "gpus": _DEVICES,
        "tpu_cores": 'accelerator="tpu" and devices=…',
        "ipus": "there is no support for IPUs any more",
        "num_processes": 'accelerator="cpu" and devices=…',
        "auto_select_gpus": 'devices=…; "auto" takes all',
        "distributed_backend": 'strategy=…, such as "ddp"',
        "amp_backend": 'precision="16-mixed" or "bf16-mixed"',
        "amp_level": 'precision="16-mixed" or "bf16-mixed"',
        "resume_from_checkpoint": _CKPT_PATH,
        "checkpoint_callback": "enable_checkpointing=True or False, and ModelCheckpoint among the callbacks",
        "early_stop_callback": "EarlyStopping among the callbacks",
        "replace_sampler_ddp": "use_distributed_sampler=…",
        "track_grad_norm": "the callback GradientNormMonitor",
        "terminate_on_nan": "nothing: a loss that is not finite ends the fit; detect_anomaly=True names the operation",
        "auto_lr_find": "a learning rate chosen in the script, and LearningRateMonitor to watch it",
        "auto_scale_batch_size": "a batch size chosen in the script, and DeviceStatsMonitor to watch memory",
        "multiple_trainloader_mode": 'CombinedLoader(loaders, mode="max_size_cycle"), given to fit',
        "flush_logs_every_n_steps": "CSVLogger(flush_logs_every_n_steps=…)",
        "log_gpu_memory": "the callback DeviceStatsMonitor",
        "log_save_interval": "log_every_n_steps=…",
        "row_log_interval": "log_every_n_steps=…",
        "weights_summary": "enable_model_summary=…, or ModelSummary(max_depth=…) among the callbacks",
        "weights_save_path": "default_root_dir=…, or ModelCheckpoint(dirpath=…)",
        "progress_bar_refresh_rate": "TQDMProgressBar(refresh_rate=…) among the callbacks",
        "process_position": "TQDMProgressBar(process_position=…) among the callbacks",
        "stochastic_weight_avg": "StochasticWeightAveraging among the callbacks",
        "truncated_bptt_steps": "manual optimization (self.automatic_optimization = False), with a loop of your own",
        "reload_dataloaders_every_epoch": "reload_dataloaders_every_n_epochs=1",
        "prepare_data_per_node": "self.prepare_data_per_node = … in the module or the datamodule",
        "move_metrics_to_cpu": "nothing: values are fetched when something shows them",
        "train_percent_check": "limit_train_batches=…",
        "val_percent_check": "limit_val_batches=…",
        "test_percent_check": "limit_test_batches=…",
        "overfit_pct": "overfit_batches=…",
        "sync_bn": "sync_batchnorm=True",
    },
    "ModelCheckpoint": {
        "period": "every_n_epochs=…",
        "every_n_val_epochs": "every_n_epochs=…",
        "filepath": 'dirpath=… and filename=…, such as "{epoch}-{val_loss:.2f}"',
        "prefix": "filename=…, which may begin with it",
        "save_function": "Callback.on_save_checkpoint, which may add to the file",
    },
    "fit": {
        "train_dataloader": _LOADERS,
        "train_loader": _LOADERS,
        "val_dataloader": "val_dataloaders, with an s: a loader, or several",
        "dataloaders": "train_dataloaders and val_dataloaders",
        "dataloader": "train_dataloaders and val_dataloaders",
        "resume_from_checkpoint": "ckpt_path=…",
    },
    "validate": {"val_dataloaders": "dataloaders=…", "val_dataloader": "dataloaders=…"},
    "test": {"test_dataloaders": "dataloaders=…", "test_dataloader": "dataloaders=…"},
    "predict": {"predict_dataloaders": "dataloaders=…", "predict_dataloader": "dataloaders=…"},
}


class UnknownArgumentError(ConfigurationError, TypeError):
    """A TypeError, as Python's own, that says what to write."""


def refuse(owner: str, function: Callable[..., Any], given: Iterable[str]) -> None:
    """
    Args:
        owner: its name in `FORMER` and in the message.
        function: of a class that hands arguments on to its bases: the class.
        given: the arguments that it does not know.

    Raises:
        UnknownArgumentError: there are some.
    """
    for name in given:
        former = FORMER.get(owner, {}).get(name)
        if former is not None:
            raise UnknownArgumentError(f"{owner} has no argument {name!r}; what takes its place: {former}")
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        owners = [kind.__init__ for kind in function.__mro__] if isinstance(function, type) else [function]  # type: ignore[misc]
        parameters = {key: kind for each in owners for key, kind in inspect.signature(each).parameters.items()}
        known = [key for key, it in parameters.items() if key not in ("self", "run") and it.kind not in kinds]
        near = get_close_matches(name, known, 1, cutoff=0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise UnknownArgumentError(f"{owner} has no argument {name!r}: {hint}")
