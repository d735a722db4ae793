"""How batches become steps: the same numbers as Lightning's, and what Lightning has given up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

import everstep as L
from everstep.errors import ConfigurationError
from tests.runtime.build import Net, loader, trainer
from tests.runtime.peer import lightning, quiet


def model_of(library: Any, define: Callable[[type], type]) -> Any:
    class Base(library.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)

        def loss(self, batch: Any) -> Any:
            return (self.second(self.first(batch[0]).tanh()) - batch[1]).square().mean()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1, momentum=0.9)

    return define(Base)()


def both(tmp_path: Path, define: Callable[[type], type], **more: Any) -> tuple[Any, Any]:
    """The model trained by Everstep and by Lightning, and compares them to the last bit."""
    arguments = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path, **more}
    with quiet():
        theirs = lightning.Trainer(
            enable_checkpointing=False, enable_model_summary=False, accelerator="cpu", **arguments
        )
        expected = model_of(lightning, define)
        theirs.fit(expected, loader(), loader())
    ours, model = trainer(tmp_path, **more), model_of(L, define)
    ours.fit(model, loader(), loader())
    for (name, value), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert (ours.global_step, ours.current_epoch) == (theirs.global_step, theirs.current_epoch)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in ours.optimizers]
    assert rates == [[group["lr"] for group in optimizer.param_groups] for optimizer in theirs.optimizers]
    return model, ours


def as_it_is(base: type) -> type:
    return base


def test_s07_backward_and_step_are_automatic_and_to_the_bit_lightnings(tmp_path: Path) -> None:
    both(tmp_path, as_it_is)


def test_s32_clipping_by_norm_also_with_accumulation(tmp_path: Path) -> None:
    clipped, _ = both(tmp_path, as_it_is, gradient_clip_val=0.05, accumulate_grad_batches=4)
    free, _ = both(tmp_path, as_it_is, accumulate_grad_batches=4)
    assert not torch.equal(clipped.first.weight, free.first.weight)


def test_s33_clipping_by_value(tmp_path: Path) -> None:
    by_value, _ = both(tmp_path, as_it_is, gradient_clip_val=0.05, gradient_clip_algorithm="value")
    by_norm, _ = both(tmp_path, as_it_is, gradient_clip_val=0.05)
    assert not torch.equal(by_value.first.weight, by_norm.first.weight)


def test_s34_accumulation_steps_with_the_last_partial_window(tmp_path: Path) -> None:
    _, ours = both(tmp_path, as_it_is, accumulate_grad_batches=4)
    assert ours.global_step == 4, "6 batches: a window of four and one of two, in each of 2 epochs"


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "an optimizer": lambda o: o,
    "a list": lambda o: [o],
    "a tuple": lambda o: (o,),
    "two lists": lambda o: ([o], [StepLR(o, 1, 0.5)]),
    "two lists, a dict": lambda o: ([o], [{"scheduler": StepLR(o, 1, 0.5), "interval": "step"}]),
    "a dict": lambda o: {"optimizer": o},
    "a dict with a scheduler": lambda o: {"optimizer": o, "lr_scheduler": StepLR(o, 1, 0.5)},
    "every second epoch": lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1, 0.5), "frequency": 2}},
    "every fourth step": lambda o: {
        "optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1, 0.5), "interval": "step", "frequency": 4},
    },
    "a plateau": lambda o: {
        "optimizer": o, "lr_scheduler": {"scheduler": ReduceLROnPlateau(o, patience=0, threshold=9.0),
                                         "monitor": "val_loss"},
    },
    "monitor beside it": lambda o: {
        "optimizer": o, "lr_scheduler": ReduceLROnPlateau(o, patience=0, threshold=9.0), "monitor": "val_loss",
    },
    "a named one": lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": StepLR(o, 1, 0.5), "name": "mine"}},
}  # fmt: skip


@pytest.mark.parametrize("form", SCHEDULES)
def test_s09_every_return_form_of_configure_optimizers(tmp_path: Path, form: str) -> None:
    def define(base: Any) -> type:
        class Model(base):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                return SCHEDULES[form](SGD(self.parameters(), lr=0.1))

        return Model

    both(tmp_path, define, max_epochs=3)


def test_s09_no_optimizer_trains_nothing_and_says_so(tmp_path: Path) -> None:
    net = Net(lambda module: None)
    before = net.layer.weight.clone()
    with pytest.warns(UserWarning, match="configure_optimizers returned None: nothing is trained"):
        trainer(tmp_path, max_epochs=1).fit(net, loader())
    assert torch.equal(net.layer.weight, before)


def test_s109_a_scheduler_dict_with_everything_for_one_that_monitors_nothing(tmp_path: Path) -> None:
    def define(base: Any) -> type:
        class Model(base):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                optimizer = Adam(self.parameters(), lr=0.1)
                scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
                more = {"monitor": "val_loss", "interval": "epoch", "frequency": 1}
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **more}}

        return Model

    both(tmp_path, define, max_epochs=3)


def test_s09_a_scheduler_of_ones_own(tmp_path: Path) -> None:
    steps: list[Any] = []

    class Mine:
        def step(self) -> None:
            raise AssertionError("lr_scheduler_step is to do it")

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    class Own(Net):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            steps.append((type(scheduler), metric))

    def configure(module: Any) -> Any:
        return [SGD(module.parameters(), lr=0.1)], [Mine()]

    trainer(tmp_path, max_epochs=2).fit(Own(configure), loader())
    assert steps == [(Mine, None)] * 2
    with pytest.raises(ConfigurationError, match=r"a Mine is none of torch\.optim\.lr_scheduler: .* lr_scheduler_step"):
        trainer(tmp_path).fit(Net(configure), loader())


def test_s09_an_optimizer_that_wants_a_closure(tmp_path: Path) -> None:
    def define(base: Any) -> type:
        class Model(base):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                return LBFGS(self.parameters(), lr=0.1, max_iter=3)

        return Model

    both(tmp_path, define, max_epochs=1)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("asks", [True, False], ids=["calls it", "calls it if it is there"])
def test_s09_optimizers_that_are_not_torchs_get_the_closure(tmp_path: Path, asks: bool, accumulated: int) -> None:
    define = steps_by_the_loss(asks)
    both(tmp_path, define, accumulate_grad_batches=accumulated)


@pytest.mark.parametrize("gives", ["step()", "step(closure)"])
def test_s09_in_manual_optimization_too(tmp_path: Path, gives: str) -> None:
    def define(base: Any) -> type:
        class Model(steps_by_the_loss(asks=True)(base)):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch: Any, batch_idx: int) -> None:
                optimizer = self.optimizers()

                def closure() -> Any:
                    optimizer.zero_grad()
                    loss = self.loss(batch)
                    self.manual_backward(loss)
                    return loss

                if gives == "step()":
                    closure()
                    optimizer.step()
                else:
                    assert optimizer.step(closure) is not None

        return Model

    both(tmp_path, define, max_epochs=1)


def steps_by_the_loss(asks: bool) -> Callable[[type], type]:
    """A model whose optimizer's step is the larger the larger the loss is that its closure returns."""

    class ByLoss(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.1})

        def step(self, closure: Any = None) -> Any:
            loss = closure() if asks or closure is not None else None
            size = 1.0 if loss is None else min(1.0, float(loss))
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter -= size * self.param_groups[0]["lr"] * parameter.grad
            return loss

    def define(base: Any) -> type:
        class Model(base):  # type: ignore[misc]
            def configure_optimizers(self) -> Any:
                return ByLoss(self.parameters())

        return Model

    return define


@pytest.mark.parametrize("whose", ["its class", "the object", "torch's, as somebody has replaced it"])
def test_s01_an_optimizers_own_zero_grad_is_called(tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only torch's is done without a call."""
    calls: list[str] = []

    def zero_grad(self: Any, set_to_none: bool = True) -> None:
        calls.append("zero_grad")
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    class Own(SGD): ...

    def configure(module: Any) -> Any:
        optimizer = Own(module.parameters(), lr=0.1)
        if whose == "the object":
            optimizer.zero_grad = lambda: zero_grad(optimizer)  # type: ignore[method-assign]
        else:
            monkeypatch.setattr(Own if whose == "its class" else torch.optim.Optimizer, "zero_grad", zero_grad)
        return optimizer

    torch.manual_seed(0)
    own = Net(configure)
    trainer(tmp_path, max_epochs=1).fit(own, loader())
    assert len(calls) == 6
    monkeypatch.undo()
    torch.manual_seed(0)
    plain = Net(lambda module: SGD(module.parameters(), lr=0.1))
    trainer(tmp_path, max_epochs=1).fit(plain, loader())
    assert len(calls) == 6
    assert torch.equal(own.layer.weight, plain.layer.weight)


def test_s01_steps_of_the_loop_can_be_replaced(tmp_path: Path) -> None:
    """optimizer_step with warm-up, zero_grad, backward, clipping and the scheduler's step: as Lightning does them."""

    def define(base: Any) -> type:
        class Model(base):  # type: ignore[misc]
            def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
                optimizer.step(closure=optimizer_closure)
                for group in optimizer.param_groups:
                    group["lr"] = 0.01 * (self.trainer.global_step + 1)

            def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
                optimizer.zero_grad(set_to_none=False)

            def backward(self, loss: Any) -> None:
                (loss * 2).backward()

            def configure_gradient_clipping(
                self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
            ) -> None:
                assert gradient_clip_val == 0.3
                torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val / 3)

        return Model

    both(tmp_path, define, gradient_clip_val=0.3)


# Manual optimisation.


def adversaries(base: Any) -> type:
    class Gan(base):  # type: ignore[misc]
        """Two optimizers of two layers against each other."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            one, two = self.optimizers()
            self.toggle_optimizer(one)
            assert not self.second.weight.requires_grad
            one.zero_grad()
            self.manual_backward(self.loss(batch))
            self.clip_gradients(one, 0.1, "norm")
            one.step()
            self.untoggle_optimizer(one)
            with two.toggle_model():
                assert not self.first.weight.requires_grad
                two.zero_grad()
                self.manual_backward(-0.1 * self.loss(batch))
                two.step()
            assert self.first.weight.requires_grad
            if self.trainer.is_last_batch:
                self.lr_schedulers().step()

        def configure_optimizers(self) -> Any:
            one = SGD(self.first.parameters(), lr=0.1)
            return [one, Adam(self.second.parameters(), lr=0.01)], [StepLR(one, 1, 0.5)]

    return Gan


def test_s07_manual_optimisation_as_lightnings(tmp_path: Path) -> None:
    _, ours = both(tmp_path, adversaries)
    assert ours.global_step == 24, "each of two optimizers, for each of 12 batches"
    assert isinstance(ours.lightning_module.optimizers()[0], SGD)
    assert ours.lightning_module.optimizers(use_pl_optimizer=False) == ours.optimizers


def test_s07_manual_optimisation_calls_the_hooks_around_each_step(tmp_path: Path) -> None:
    calls: list[str] = []

    class Watch(L.Callback):
        def on_before_backward(self, *_: Any) -> None:
            calls.append("before backward")

        def on_after_backward(self, *_: Any) -> None:
            calls.append("after backward")

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            calls.append(type(optimizer).__name__)

    trainer(tmp_path, max_steps=2, callbacks=Watch()).fit(model_of(L, adversaries), loader(), loader())
    assert calls == ["before backward", "after backward", "SGD", "before backward", "after backward", "Adam"]


def test_s07_manual_resumes_where_it_was(tmp_path: Path) -> None:
    from tests.runtime.build import Memory

    memory, whole = Memory(every_steps=5), model_of(L, adversaries)
    trainer(tmp_path, memory).fit(whole, loader(), loader())
    assert [saved.step for saved in memory.saved][:2] == [6, 10], "two steps a batch: at the first boundary past it"
    again = model_of(L, adversaries)
    trainer(tmp_path, memory.forget_after(1)).fit(again, loader(), loader())
    assert torch.equal(again.first.weight, whole.first.weight)


@pytest.mark.parametrize("more", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_s07_what_manual_optimisation_does_itself_is_refused_as_argument(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigurationError, match=f"{next(iter(more))}=.* does not go with automatic_optimization = False"
    ):
        trainer(tmp_path, **more).fit(model_of(L, adversaries), loader(), loader())


def test_s07_manual_backward_in_an_automatic_module_is_refused(tmp_path: Path) -> None:
    class Mixed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(self.loss(batch))

    with pytest.raises(ConfigurationError, match=r"Mixed calls manual_backward, .* set self.automatic_optimization"):
        trainer(tmp_path).fit(Mixed(), loader())


# Several optimizers, automatically.


class Two(Net):
    """One optimizer lowers the loss by the weight, the other raises it by the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool, bool]] = []

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        weight, bias = self.layer.weight, self.layer.bias
        self.seen.append((optimizer_idx, weight.requires_grad, bias.requires_grad))
        return self.loss(batch) if optimizer_idx == 0 else -self.loss(batch)

    def configure_optimizers(self) -> Any:
        return [SGD([self.layer.weight], lr=0.1), SGD([self.layer.bias], lr=0.01)]


def test_c14_several_optimizers_each_step_per_batch(tmp_path: Path) -> None:
    torch.manual_seed(3)
    ours, plain = Two(), Two()
    plain.load_state_dict(ours.state_dict())
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(ours, loader())
    optimizers = plain.configure_optimizers()
    for batch in loader():
        for sign, optimizer in zip((1.0, -1.0), optimizers, strict=True):
            plain.zero_grad()
            (sign * plain.loss(batch)).backward()
            optimizer.step()
    assert torch.equal(ours.layer.weight, plain.layer.weight)
    assert torch.equal(ours.layer.bias, plain.layer.bias)
    assert ours.seen[:2] == [(0, True, False), (1, False, True)]
    assert runner.global_step == 12
    assert runner.batches_that_stepped == 6
    assert ours.layer.weight.requires_grad
    assert ours.layer.bias.requires_grad


def test_c14_without_optimizer_idx_and_with_a_scheduler_for_each(tmp_path: Path) -> None:
    class Plain(Net):
        def configure_optimizers(self) -> Any:
            each = [SGD([self.layer.weight], lr=1.0), SGD([self.layer.bias], lr=1.0)]
            return [{"optimizer": o, "lr_scheduler": LambdaLR(o, lambda n, by=by: by**n)} for o, by in
                    zip(each, (0.5, 0.1), strict=True)]  # fmt: skip

    runner = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2)
    runner.fit(Plain(), loader())
    assert [optimizer.param_groups[0]["lr"] for optimizer in runner.optimizers] == [0.25, pytest.approx(0.01)]
    assert runner.global_step == 12, "3 windows, 2 optimizers, 2 epochs"


def test_c14_a_checkpoint_holds_both(tmp_path: Path) -> None:
    from tests.runtime.build import Memory

    memory, whole = Memory(every_steps=4), Two()
    first = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer(tmp_path, memory).fit(whole, loader())
    again = Two()
    again.load_state_dict(first)
    trainer(tmp_path, memory.forget_after(2)).fit(again, loader())
    assert torch.equal(again.layer.weight, whole.layer.weight)
    assert len(again.seen) == 24 - 2 * 4


# What training_step returns.


def test_s75_none_leaves_the_batch_out_as_lightning_does(tmp_path: Path) -> None:
    def define(base: Any) -> type:
        class Skips(base):  # type: ignore[misc]
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return None if batch_idx % 3 == 1 else self.loss(batch)

        return Skips

    with pytest.warns(UserWarning, match="training_step returned None: such batches add nothing"):
        both(tmp_path, define)
    with pytest.warns(UserWarning, match="training_step returned None"):
        both(tmp_path, define, accumulate_grad_batches=2)


def test_s75_a_dict_with_the_loss_reaches_the_hooks_whole(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Dict(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "predictions": batch[0] * 2}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(torch.equal(outputs["predictions"], batch[0] * 2))

        def test_step(self, batch: Any, batch_idx: int) -> Any:
            return {"predictions": batch[0]}

        def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            seen.append(torch.equal(outputs["predictions"], batch[0]))

    runner, net = trainer(tmp_path, max_epochs=1), Dict()
    runner.fit(net, loader())
    runner.test(net, loader())
    assert seen == [True] * 12


def test_s75_a_step_may_end_the_epoch(tmp_path: Path) -> None:
    class Enough(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(Enough(), loader())
    assert (runner.global_step, runner.current_epoch) == (4, 2)


@pytest.mark.parametrize("answer", [-1, torch.ones(3)], ids=["-1", "a tensor"])
def test_s75_what_a_callback_returns_ends_nothing(tmp_path: Path, answer: Any) -> None:
    class Answering(L.Callback):
        def on_train_batch_start(self, *_: Any) -> Any:
            return answer

    class Listening(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...

    for net in (Net(), Listening()):
        runner = trainer(tmp_path, max_epochs=1, callbacks=[Answering()])
        runner.fit(net, loader())
        assert runner.global_step == 6
