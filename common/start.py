"""How a script starts a run: checks first, then as many processes as devices are asked for."""

import contextlib
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from common.data.loading import Feed, worker_count
from common.data.pictures import Datasets
from common.device.exits import exit_codes, leave, reason
from common.device.launch import (
    in_torchrun,
    is_checked,
    leave_done,
    local_devices,
    process_count,
    run_torchrun,
    say_why,
)
from common.device.limits import check_limits
from common.device.relay import introduce, started
from common.device.slurm import adopt
from common.device.stopping import Stop
from common.device.watching import watch
from common.device.world import World, find_device_type
from common.dry_run import check_dry_run, dry_run
from common.errors import Diverged, NotSaved, Stopped
from common.recipe import noting_changes
from common.record.folder import RUN_MARK
from common.run import Build, Run
from common.seeds import run_seeds

Main = Callable[[Namespace, Run, Datasets, nn.Module], dict]


def launch(main: Main, build: Build, args: Namespace, presets: ModuleType) -> None:
    """Check the devices and the input, then train in as many processes as devices are asked for.

    Whatever can be known to be wrong raises InputError in `build`, before other processes exist. With more than one
    device this process becomes torchrun, which starts this script again with the same arguments once per device. With
    --seeds it starts one run after the other; with --dry_run it measures some steps, and ends.
    The exit codes are those of `common.errors.ExitCode`.
    """
    with exit_codes():
        adopt(args)
        if args.dry_run:
            check_dry_run(args)
        elif args.seeds > 1:
            leave(run_seeds(args))
        alone = not in_torchrun()
        with Stop(0 if args.dry_run else args.max_minutes, started(), alone).listening() as stop:
            introduce(stop)
            if is_restarted(args):
                args.resume = "auto"
            processes = process_count(args)
            run = Run(args, presets, processes, stop=stop)
            with noting_changes(args):
                built = run.build(build)
            if not is_checked():
                _check_machine(args, run)
            say_why(args)
            if args.dry_run:
                dry_run(main, run, *built)
                return
            if processes > 1 and alone:
                del run, built  # the processes build their own
                run_torchrun(args)
                return
            stop.begin()
            run.join()
            watch(run.world, args.dist_timeout)
            with _failures_kept(run):
                result = main(args, run, *built)
            leave_done(result)


@contextlib.contextmanager
def _failures_kept(run: Run) -> Iterator[None]:
    """Note an error that ends a run in its log: the terminal, which is told of it too, may be gone."""
    try:
        yield
    except (Stopped, Diverged, NotSaved):  # the log has it
        raise
    except Exception as error:
        if run.log:
            run.log.fail(reason(error))
        raise


def _check_machine(args: Namespace, run: Run) -> None:
    """Raise InputError where this machine has no room for the workers of a training; see `check_limits`."""
    if run.device_batch_size == 0:  # an evaluation
        return
    per_device = worker_count(args.workers, World(torch.device(find_device_type(args.device))))
    # by itself a number of workers is that of one device; cores are shared out among them
    devices = 1 if in_torchrun() or args.workers == "auto" else len(local_devices(args))
    check_limits(run.image_size, run.device_batch_size, devices * per_device)


def is_restarted(args: Namespace) -> bool:
    """Whether this process continues what one before it had begun: after a failure, with --max_restarts."""
    again = is_checked() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and not args.evaluate
    mark, checkpoint = (Path(args.output_dir, name) for name in (RUN_MARK, "checkpoints/last.pt"))
    # else the run in the folder is an older one, which this one would have moved aside
    return again and checkpoint.exists() and mark.stat().st_mtime >= started()


def carry_out(main: Main, build: Build, args: Namespace, presets: ModuleType, feed: Feed | None = None) -> dict:
    """What `launch` does, in this process alone, for programs that look at a training from within; its result."""
    run = Run(args, presets, feed=feed)
    built = run.build(build)
    run.join()
    return main(args, run, *built)
