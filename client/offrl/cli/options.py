"""Options of the commands that queue jobs: what several of submit, collect and train-online take, said once."""

from __future__ import annotations

from typing import Annotated

import typer

from offrl.cli import completion
from offrl.cli.values import count, real

# What is trained.
Algorithm = Annotated[str, typer.Argument(metavar="ALGO", help="A name of `offrl algos`.", autocompletion=completion.algorithms)]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the algorithm; may be repeated.")]
Config = Annotated[str | None, typer.Option("--config", metavar="F.toml", help="A TOML file of settings; --set goes before it.")]
Preset = Annotated[str | None, typer.Option("--preset", metavar="P", help="A named set of settings of the algorithm.")]
Start = Annotated[str | None, typer.Option("--from", metavar="JOB[:SEED]", help="Start from the networks of this job; waits for it.")]
Transfer = Annotated[str | None, typer.Option("--transfer", metavar="T", help="Of --from: all, policy or critics. [default: all]")]
FreshOptimizer = Annotated[bool, typer.Option("--fresh-optimizer", help="With --from: reset the optimizer state.")]
EvalEnv = Annotated[str | None, typer.Option("--eval-env", metavar="ID", help="Evaluate in this gymnasium environment.")]

# What it runs on.
Device = Annotated[str | None, typer.Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N. [default: auto]")]
Threads = Annotated[int | None, typer.Option("--threads", parser=count, metavar="N", help="CPU threads of torch. [default: 1]")]
GpuMemory = Annotated[
    int | None,
    typer.Option("--gpu-memory", parser=count, metavar="MB", help="Memory of a card to set aside for the job. [default: estimated]"),
]

# What acts, and where.
Env = Annotated[str, typer.Option("--env", metavar="ID", help="The gymnasium environment, made on the daemon's side.")]
Limit = Annotated[
    int | None, typer.Option("--limit", parser=count, metavar="N", help="Transitions of a new dataset: beyond them the oldest episodes go.")
]
Epsilon = Annotated[
    float | None, typer.Option("--epsilon", parser=real, metavar="E", help="Probability of a uniform action; with --epsilon-end the first.")
]
EpsilonEnd = Annotated[float | None, typer.Option("--epsilon-end", parser=real, metavar="E", help="To which it falls,")]
EpsilonSteps = Annotated[int | None, typer.Option("--epsilon-steps", parser=count, metavar="N", help="within so many steps.")]
Noise = Annotated[
    float | None,
    typer.Option("--noise", parser=real, metavar="STD", help="Deviation of normal noise on actions whose bounds are -1 and 1."),
]
MaxEpisode = Annotated[
    int | None, typer.Option("--max-episode-steps", parser=count, metavar="N", help="Cut an episode after so many steps.")
]
StepTimeout = Annotated[
    float | None,
    typer.Option("--step-timeout", parser=real, metavar="S", help="Fail, with what is there kept, where a step takes more seconds."),
]
Processes = Annotated[bool, typer.Option("--processes", help="Each of them in a process of its own.")]

# Where a result goes.
Force = Annotated[bool, typer.Option("--force", help="Replace a file that has other content.")]

# How it is queued.
Priority = Annotated[int, typer.Option("--priority", parser=count, metavar="P", help="A higher one runs first.")]
After = Annotated[
    list[str] | None,
    typer.Option("--after", metavar="JOB", help="Wait until JOB has succeeded; may be repeated.", autocompletion=completion.jobs),
]
Key = Annotated[str | None, typer.Option("--key", metavar="K", help="The same key gives the same job, however often it is sent.")]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; exit status 1 if it fails.")]

PolicyInput = Annotated[
    str | None, typer.Option("--policy-input", metavar="NAME", help="Of an ONNX file of another program: the tensor of the observation.")
]
PolicyOutput = Annotated[str | None, typer.Option("--policy-output", metavar="NAME", help="Likewise: the tensor of the action.")]
PolicyArgmax = Annotated[bool, typer.Option("--policy-argmax", help="Likewise: the output holds scores, the highest is the action.")]
