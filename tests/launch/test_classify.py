"""Exceptions to reasons, places and one-line messages."""

import errno
import json
import sys

import pytest

from everstep.errors import ConfigurationError, EverstepError, NonFiniteLossError, Stopped, StorageError
from everstep.launch import classify
from everstep.launch.lightning_alias import MissingInEverstep
from everstep_protocol.reasons import EXIT_STOPPED, TRACEBACK_LIMIT, Reason


def torch_type(name: str, base: type[Exception] = RuntimeError, module: str = "torch") -> type[Exception]:
    """An exception type as torch has it, without torch."""
    return type(name, (base,), {"__module__": module})


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


REASONS = [
    (ValueError("no"), Reason.USER_EXCEPTION),
    (KeyError("x"), Reason.USER_EXCEPTION),
    (ModuleNotFoundError("No module named 'foo'"), Reason.CONFIGURATION),
    (ImportError("cannot import name 'bar' from 'foo' (foo.py)"), Reason.CONFIGURATION),
    (ImportError("libcuda.so.1: cannot open shared object file"), Reason.USER_EXCEPTION),
    (SyntaxError("invalid syntax"), Reason.CONFIGURATION),
    (IndentationError("unexpected indent"), Reason.CONFIGURATION),
    (MissingInEverstep("has no lightning.pytorch.cli"), Reason.CONFIGURATION),
    (SystemExit(2), Reason.USER_EXCEPTION),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), Reason.USER_EXCEPTION),
    (ValueError("the model's store is a gloomy place"), Reason.USER_EXCEPTION),
    (FileNotFoundError(errno.ENOENT, "No such file", "data.csv"), Reason.USER_EXCEPTION),
    (MemoryError(), Reason.OUT_OF_MEMORY),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), Reason.OUT_OF_MEMORY),
    (torch_type("OutOfMemoryError")("CUDA out of memory. Tried to allocate 20.00 GiB"), Reason.OUT_OF_MEMORY),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        Reason.OUT_OF_MEMORY,
    ),
    (NonFiniteLossError("loss is nan at step 4"), Reason.NON_FINITE_LOSS),
    (RuntimeError("Function 'MulBackward0' returned nan values in its 0th output."), Reason.NON_FINITE_LOSS),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), Reason.DATA),
    (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), Reason.DATA),
    (ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback …\nValueError: x"), Reason.DATA),
    (torch_type("DistBackendError", module="torch.distributed")("NCCL error in …"), Reason.COMMUNICATION),
    (torch_type("DistStoreError", module="torch.distributed")("wait timeout after 300000ms"), Reason.COMMUNICATION),
    (
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9"),
        Reason.COMMUNICATION,
    ),
    (RuntimeError("Rank 1 successfully reached monitoredBarrier … ProcessGroupGloo"), Reason.COMMUNICATION),
    (StorageError("bucket missing"), Reason.STORAGE),
    (OSError(errno.ENOSPC, "No space left on device"), Reason.STORAGE),
    (torch_type("PermissionDeniedError", Exception, "obstore.exceptions")("403"), Reason.STORAGE),
    (caused_by(RuntimeError("saving failed"), OSError(errno.ENOSPC, "No space left")), Reason.STORAGE),
    (ConfigurationError("devices=2 without a launcher"), Reason.CONFIGURATION),
    (EverstepError("?"), Reason.UNKNOWN),
    (KeyboardInterrupt(), Reason.KILLED),
]


@pytest.mark.parametrize(("error", "reason"), REASONS, ids=[f"{type(e).__name__}-{r}" for e, r in REASONS])
def test_reason(error: BaseException, reason: Reason) -> None:
    assert classify.reason_of(error) is reason


def test_circular_causes_end() -> None:
    error = ValueError("a")
    error.__cause__ = ValueError("b")
    error.__cause__.__cause__ = error
    assert classify.reason_of(error) is Reason.USER_EXCEPTION


def test_classifying_imports_no_torch() -> None:
    import subprocess

    code = (
        "import sys\nfrom everstep.launch.classify import failure_of\nfailure_of(RuntimeError('CUDA out of memory'),"
        "'x', None)\nassert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_line() -> None:
    assert classify.one_line(ValueError("bad\nthing")) == "ValueError: bad"
    assert classify.one_line(ValueError()) == "ValueError"
    assert len(classify.one_line(ValueError("x" * 5000))) <= classify.MESSAGE_LIMIT
    wrapped = (
        "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\nKeyError: 7"
    )
    assert classify.one_line(RuntimeError(wrapped)) == "KeyError: 7 (in a DataLoader worker)"


def test_long_tracebacks_keep_their_end() -> None:
    text = classify.shorten("first\n" + "x" * 20_000 + "\nlast")
    assert len(text) == TRACEBACK_LIMIT
    assert text.endswith("last")
    assert "cut" in text[:10]


def test_our_own_errors_are_sentences_without_a_traceback() -> None:
    sentence = "the store is full: " + "free some, " * 60 + "or take another uri"
    try:
        raise StorageError(sentence)
    except StorageError as error:
        failure = classify.failure_of(error, hide="nowhere", script=__file__)
    assert failure.message == sentence, "whole: what to do stands at its end"
    assert failure.traceback == ""
    assert failure.where.startswith("test_classify.py:")


def test_where_is_the_users_frame() -> None:
    """json raises deep inside the standard library; the user wants the line of his own file."""
    try:
        json.loads("{")
    except ValueError as error:
        failure = classify.failure_of(error, hide="nowhere", script=__file__)
        line = error.__traceback__.tb_lineno if error.__traceback__ else 0
    assert failure.where == f"test_classify.py:{line}"
    assert failure.reason is Reason.USER_EXCEPTION
    assert "json/decoder.py" in failure.traceback


def test_stopped_leaves_with_the_agreed_status() -> None:
    with pytest.raises(SystemExit) as leaving:
        raise Stopped("saved at step 7")
    assert leaving.value.code == EXIT_STOPPED
