"""What a worker finds in its environment."""

from pathlib import Path

from everstep.launch.environment import seed_of, worker_environment
from everstep_protocol import env
from everstep_protocol.messages import Round

ROUND = Round(
    generation=4,
    rank_offset=2,
    world_size=6,
    node_rank=1,
    nodes=3,
    master_address="10.0.0.7",
    master_port=31000,
    restarts=2,
)


def worker(base: dict[str, str] | None = None, run_id: str = "digits", local_rank: int = 1) -> dict[str, str]:
    return worker_environment(
        base or {},
        ROUND,
        local_rank=local_rank,
        nproc=2,
        run_id=run_id,
        max_restarts=5,
        board=Path("/b"),
        failure_file=Path("/f"),
    )


def test_torchruns_variables() -> None:
    found = worker()
    expected = {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "3",
        "ROLE_NAME": "default",
        "ROLE_RANK": "3",
        "ROLE_WORLD_SIZE": "6",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "31000",
        "TORCHELASTIC_RUN_ID": "digits",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_MAX_RESTARTS": "5",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        env.GENERATION: "4",
        env.BOARD: "/b",
        env.FAILURE_FILE: "/f",
    }
    assert {name: found[name] for name in expected} == expected
    theirs = {name for name in expected if not name.startswith(("TORCHELASTIC_", "EVERSTEP_"))}
    assert theirs == set(env.TORCHRUN), "what the API refuses in trainer.env"


def test_the_users_values_stay_and_stale_ones_go() -> None:
    mine = {"OMP_NUM_THREADS": "8", "PYTHONHASHSEED": "7", env.SEED: "11", "PYTHONUNBUFFERED": "", "HOME": "/h"}
    found = worker({**mine, "RANK": "99", env.BOARD: "/old"})
    assert {name: found[name] for name in mine} == mine
    assert found["RANK"] == "3"
    assert found[env.BOARD] == "/b"


def test_threads_and_seeds_are_fixed_for_the_run() -> None:
    found = worker()
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["PYTHONHASHSEED"] == found[env.SEED] == str(seed_of("digits"))
    assert worker(local_rank=0)[env.SEED] == found[env.SEED], "the same on every rank"
    assert worker(run_id="other")[env.SEED] != found[env.SEED]
    assert worker({env.RUN_UID: "u1"})[env.SEED] == str(seed_of("u1")), "the run's uid names it best"


def test_seeds_are_what_python_and_torch_take() -> None:
    seeds = {seed_of(str(n)) for n in range(500)}
    assert len(seeds) == 500
    assert all(0 < seed < 2**31 for seed in seeds)
