"""Attributes of Lightning's strategies that these do not have, and what to use instead."""

_CHECKPOINTS = "trainer.save_checkpoint(path), and ckpt_path= of the Trainer's verbs"
_STEPS = "the module's hooks; the loop calls them itself"

INSTEAD = {
    "backward": "the module's manual_backward(loss)",
    "batch_to_device": "to_device",
    "checkpoint_io": _CHECKPOINTS,
    "cluster_environment": "environment",
    "launcher": "`everstep launch`, or devices=2, with which the Trainer starts its ranks itself",
    "lightning_module_state_dict": "model_state(module)",
    "load_checkpoint": _CHECKPOINTS,
    "load_model_state_dict": "load_model_state(module, state)",
    "load_optimizer_state_dict": "load_optimizer_state(optimizer, state)",
    "lr_scheduler_configs": "lr_scheduler_configs of the Trainer",
    "model_sharded_context": "the module's configure_model, which is called where the parameters shall be made",
    "model_to_device": "setup(module)",
    "num_processes": "world_size, or num_devices of the Trainer",
    "optimizer_step": "the module's optimizer_step",
    "parallel_devices": "devices, and num_devices of the Trainer",
    "predict_step": _STEPS,
    "remove_checkpoint": _CHECKPOINTS,
    "save_checkpoint": _CHECKPOINTS,
    "strategy_name": "name",
    "tensor_init_context": "trainer.init_module()",
    "test_step": _STEPS,
    "training_step": _STEPS,
    "validation_step": _STEPS,
}
