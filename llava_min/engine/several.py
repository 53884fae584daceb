"""A network in several parts: over devices of this process, or over processes.

in:  how to make a part of the network, from its share of the weights
out: the network of the first part, whose decoder and tower lead the others (engine/leader.py)

On one machine the process that is asked starts the others. torchrun starts them itself, also on
several machines; then RANK is set, every rank comes here, and all but the first never return.
Read engine/leader.py, engine/towers.py, engine/followers.py first. Read next: engine/load.py.
"""

import contextlib
import os
import weakref
from collections.abc import Callable

import torch

from ..config import LlavaConfig
from ..errors import ParameterError
from ..kernels import choose
from ..model import Network
from ..planning.forecast import free_bytes
from ..planning.memory import Storage
from ..planning.split import Split, Way
from ..weights.share import Share
from .followers import STORE, Followers
from .leader import Devices, Leader, Stage, Team
from .towers import SharedTower

Part = Callable[[Share, str], Network]  # a share of the weights, on a device


def assembled(
    part: Part,
    config: LlavaConfig,
    storage: Storage,
    way: Way,
    kv_dtype: torch.dtype | None,
    chosen: dict[str, object],
) -> Network:
    """The network of the first part, with a Leader. chosen: the arguments of load() for all ranks.

    ParameterError where it cannot be split so. SystemExit at the end of a rank that follows.
    """
    if way.devices:
        return over_devices(part, config, storage, way.devices, kv_dtype)
    way.split.check(config)
    return over_ranks(part, config, storage, way.split, kv_dtype, chosen)


def over_ranks(
    part: Part,
    config: LlavaConfig,
    storage: Storage,
    split: Split,
    kv_dtype: torch.dtype | None,
    chosen: dict[str, object],
) -> Network:
    """This process as a rank: the first gets its network, the others follow until it is over."""
    from . import ranks  # and with it torch.distributed

    if ranks.joined():
        raise ParameterError("A model that is split over ranks is loaded already; del it first.")
    rank, store, followers = launched(split), os.environ.get(STORE), None
    with contextlib.ExitStack() as failed:
        failed.callback(ranks.leave)
        if rank is None:
            followers = started(split, chosen)
            failed.callback(followers.end)
            rank, store = 0, followers.store
        device = str(chosen["device"])
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        team = ranks.Ranks.join(split, rank, torch.device(device), free_bytes(device), store)
        share = split.shares(config, storage, team.rooms())[rank]
        network = part(share, device)
        team.share_sums(network.decoder)
        if rank > 0:
            team.follow(Stage(network, kv_dtype))
            raise SystemExit(0)
        failed.pop_all()
    lead(network, team)
    # with the model, or with the process
    weakref.finalize(network.decoder, end, team.end if followers is None else followers.end)
    return network


def lead(network: Network, team: Team) -> None:
    """Let the network lead a team."""
    network.decoder = Leader(network.decoder, team)
    network.vision = SharedTower(network.vision, team)


def end(others: Callable[[], None]) -> None:
    """Let the other ranks end, and be none."""
    from . import ranks

    others()
    ranks.leave()


def over_devices(
    part: Part,
    config: LlavaConfig,
    storage: Storage,
    devices: tuple[str, ...],
    kv_dtype: torch.dtype | None,
) -> Network:
    """Stages of layers in this process, by what is free on each device; CPUs share evenly."""
    split = Split(pipeline=len(devices))
    split.check(config)
    free = [free_bytes(device) for device in devices if device != "cpu"]
    rooms = [room for room in free if room is not None]
    shares = split.shares(config, storage, rooms)
    networks = [part(share, device) for share, device in zip(shares, devices)]
    lead(networks[0], Devices([Stage(network, kv_dtype) for network in networks[1:]]))
    return networks[0]


def started(split: Split, chosen: dict[str, object]) -> Followers:
    """The ranks that follow this process, which share its threads with it."""
    threads = max(1, torch.get_num_threads() // split.ranks)
    if chosen["device"] == "cpu":
        torch.set_num_threads(threads)
    numbers = {"tensor_parallel": split.tensor, "pipeline_parallel": split.pipeline}
    told = {"threads": threads, "kernels": choose.chosen()}
    return Followers(split.ranks, chosen | numbers | told)


def launched(split: Split) -> int | None:
    """The rank that a launcher gave this process, None where it is to lead its own followers.

    ParameterError where the launcher started another number of them.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    count = os.environ["WORLD_SIZE"]
    if count != str(split.ranks):
        raise ParameterError(
            f"WORLD_SIZE is {count}, but --tensor-parallel {split.tensor} x --pipeline-parallel "
            f"{split.pipeline} = {split.ranks}."
        )
    return int(os.environ["RANK"])
