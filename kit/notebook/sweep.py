"""One sweep, as the notebook `sweep` carries it out: plan, trials, comparison, bill.

It is a run like any other, with one request, one job and one result: that of its best trial. The
trials are beside it.
"""

import contextlib
import json
import statistics
import sys
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any

import kit
from kit.base import Json, KitError, UsageError, append_history, read_history, read_json
from kit.base.settings import Settings
from kit.billing import bill_of_run, estimate, sacct_of, usages
from kit.billing.rates import slurm_kinds
from kit.billing.shares import shares
from kit.experiments import DEFAULT, Thresholds, load_experiment, remember
from kit.experiments.running import Trained
from kit.notebook.opening import open_target, refuse_workers, stored_run
from kit.notebook.plan import training_seconds
from kit.notebook.results import Options, log_trials
from kit.notebook.run import Run
from kit.notebook.show import Table, Text
from kit.runs.history import TRIAL_LINES, results_lock
from kit.runs.requests import MAX_REQUEST_BYTES, RunRequest, RunRequests, RunState, write_request
from kit.slurm import planned_resources
from kit.store import bucket_name, open_store
from kit.sweeps import TRIALS, Sweep, Trial, expand, run_sweep, trials_of
from kit.sweeps.engine import (
    DONE,
    FAILED,
    FROM_RUN,
    MISSING,
    STOPPED,
    best_row,
    publish_best,
    rungs_of,
    trained_share,
    training_of,
)
from kit.sweeps.space import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def start_sweep(
    profile: str,
    target: str,
    parameters: Mapping[str, Any],
    space: Mapping[str, str],
    *,
    experiment: str = DEFAULT,
    trials: int = 0,
    draw_seed: int = 0,
    at_once: int = 2,
    stop_early: bool = False,
    trial_limit_s: float = 0.0,
    gates: Mapping[str, float | str] | None = None,
    strict: bool = False,
    configured: bool = True,
    fresh: bool = False,
) -> "SweepRun":
    """Start a sweep over the parameters of an experiment, or resume an interrupted one.

    One that was cancelled is continued by a new run, which takes over the finished trials.
    `space` has the values of each parameter, `parameters` those that are the same in all trials.
    `trials` of the combinations are drawn with `draw_seed`, 0 runs all. `at_once` trials run at
    the same time; `stop_early` ends the worse half at each halving; `trial_limit_s` ends a trial
    that takes longer (0: never). The other arguments are those of `start`. Raises UsageError for a
    space that is empty or too large, values that the experiment does not take, and the target
    cloud.
    """
    if target == "cloud":
        got = "its pipeline trains once"
        step = "use local, or cloud-hpc, where all trials share one job"
        raise UsageError("sweep on the target cloud", got, step)
    if at_once < 1:
        raise UsageError(f"run {at_once} trials at once", next_step="give at least 1")
    settings = open_target(profile, target)
    wanted = load_experiment(experiment)
    remember(wanted)
    base = wanted.parameters(**parameters)
    rows = expand(space, trials, draw_seed)
    sweep = Sweep(trials=rows, stop_early=stop_early, trial_limit_s=trial_limit_s)
    found = trials_of(wanted, base.model_dump(), sweep)
    rungs_of(wanted, sweep, found)
    for device in {trial.parameters.get("device", "cpu") for trial in found}:
        refuse_workers(settings, target, at_once, device)
    least = wanted.gates if gates is None else Thresholds(gates)
    options = Options(least, strict, configured, at_once)
    on_site = options.as_parameters(target) if target == "cloud-hpc" else {"workers": at_once}
    text = json.dumps(sweep.model_dump(exclude={"continues"}), sort_keys=True)
    recorded = {**base.model_dump(), **on_site, "sweep": text}
    cancelled = partial(_was_cancelled, settings)
    run, data = stored_run(settings, target, wanted, recorded, fresh, cancelled)
    sweep = sweep.model_copy(update={"continues": run.first.get("continues", [])})
    return SweepRun(run, data, base, options, sweep, found)


def _was_cancelled(settings: Settings, run: str) -> bool:
    """Return whether a cancel has ended a run on a site before it had a result."""
    if not run.startswith("cloud-hpc-"):
        return False
    requests = RunRequests(open_store(settings, bucket_name(settings, "submitter")))
    return requests.status(run).state is RunState.CANCELLED


class SweepRun(Run):
    """A sweep from its plan to its results; each method is a step of the notebook."""

    def __init__(
        self, run: Any, data: Any, base: Any, options: Options, sweep: Sweep, trials: list[Trial]
    ) -> None:
        super().__init__(run, data, base, options)
        self.sweep, self.trials = sweep, trials
        self.rows: list[Json] | None = None

    def _lines(self) -> list[str]:
        how = ", the worse half is stopped at each halving" if self.sweep.stop_early else ""
        lines = [f"sweep: {len(self.trials)} trials, {self.options.workers} at once{how}"]
        return [*super()._lines(), *lines, *self._continued]

    @property
    def _left(self) -> int:
        """The number of trials to be run: all, or those that a cancelled run has left."""
        for run in self.sweep.continues[:1]:
            if (path := self.run.folder.with_name(run) / "record.json").exists():
                return int(read_json(path)["sweep"]["not_run"])
        return len(self.trials)

    @property
    def _continued(self) -> list[str]:
        """The sentence that says what the sweep continues; empty for a new one."""
        left, whole = self._left, len(self.trials)
        known = f"{left} of {whole} trials, the others are finished in "
        return [f"continues {known * (left < whole)}{run}" for run in self.sweep.continues[:1]]

    @property
    def request(self) -> RunRequest:
        """All that the site learns about this sweep. Raises UsageError for one too large."""
        request = super().request.model_copy(update={"sweep": self.sweep})
        if (size := len(write_request(request))) > MAX_REQUEST_BYTES:
            got = f"its request has {size:,} bytes, at most {MAX_REQUEST_BYTES:,} are possible"
            raise UsageError(
                "request the sweep", got, "list fewer values, or vary fewer parameters"
            )
        return request

    def show_plan(self) -> Table:
        """Show what the sweep will do and about how long it takes, from runs in the history.

        On a site also what it may cost at most: its job to the time limit.
        """
        import pandas

        names = list(dict.fromkeys(name for trial in self.trials for name in trial.values))
        left = self._left
        budget = trained_share(self.experiment, self.sweep, self.trials) * left
        plan: dict[str, str] = {
            "trials": str(len(self.trials)),
            **({"left to run": str(left)} if left < len(self.trials) else {}),
            "parameters": ", ".join(names),
            "at once": str(self.options.workers),
            "trainings' worth": f"{budget:g}",
        }
        seconds = training_seconds(self.settings, self.experiment.name, self.run.target)
        if seconds is None:
            plan["core-hours"] = "not known: no run of this experiment is in the history"
        else:
            plan["core-hours"] = f"about {seconds * budget / 3600:.3g}"
            plan["takes"] = f"about {seconds * budget / self.options.workers:,.0f} s of training"
        if self.run.target == "local":
            return Table(pandas.DataFrame({"sweep": plan}))
        hpc = self.settings.hpc_section()
        held, most = planned_resources(hpc), estimate(self.settings, "cloud-hpc")
        if seconds is not None and held.seconds:
            part = Decimal(str(seconds * budget / self.options.workers)) / held.seconds
            priced = slurm_kinds(line for line in most.lines if line.what.startswith("job"))
            for kind, units in priced.items():
                plan[kind] = f"about {units * part:.3g}, without the start and the end of the job"
        memory = held.memory_gib
        gib = "" if memory is None else f", {float(memory) / self.options.workers:.3g} GiB a trial"
        plan["the job has"] = f"{held.cores} CPUs, {held.gpus} GPUs{gib}"
        return Table(
            pandas.DataFrame({"sweep": plan}),
            notes=kit.show_estimate(self.settings.profile, "cloud-hpc").notes,
        )

    def run_trials(self) -> str:
        """Run all trials that have no result yet; the last ones are shown below the cell."""
        sys.stdout.write("".join(f"{line}\n" for line in self._continued))
        if self.run.target == "local":
            self._run_here()
        else:
            self.run_pipeline()
            self.rows = json.loads(self.objects.get(self._done.files[TRIALS]))
            self.run.save(TRIALS, self.rows)
        states = [row["state"] for row in self._rows]
        known = (DONE, STOPPED, FAILED, MISSING)
        counts = [f"{states.count(state)} {state}" for state in known if state in states]
        best = self._best
        value = best["metrics"][self.experiment.primary]
        return f"{', '.join(counts)}; best {self.experiment.primary} {value:.4f}: " + named(
            best["values"]
        )

    def _run_here(self) -> None:
        from kit.notebook.live_trials import LiveTrials
        from kit.sweeps.here import ProcessSlots

        folder = self.run.folder
        slots = ProcessSlots(self.experiment, self.data.folder, self.options.workers)
        with self.run.timeline.span("training"):
            self.rows = run_sweep(
                self.experiment,
                self.sweep,
                self.trials,
                folder,
                slots,
                LiveTrials().show,
            )
        best = publish_best(folder, self.rows, self.experiment.goal)
        trained_with = {**self.parameters.model_dump(), **best["values"]}
        self.context.parameters = self.experiment.parameters(**trained_with)
        self.trained, self.metrics = Trained(*training_of(self.rows), 0), best["metrics"]
        losses = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
        self.context.losses = [(int(step), float(loss)) for step, loss in losses]

    def _execute(self, arguments: Mapping[str, Any], note: Any) -> str:
        """Run the pipeline, with the last trials below its picture."""
        from kit.notebook.live_trials import LiveTrials

        live = LiveTrials()

        def note_and_trials(states: Any) -> Any:
            """Show the trials that the site has reported, and return the note."""
            text = note(states)
            if text:
                with contextlib.suppress(KitError):  # the note says so
                    progress = self.requests.read(self.run.id, "progress") or {}
                    live.show(progress.get("training") or {})
            return text

        return super()._execute(arguments, note_and_trials)

    @property
    def _rows(self) -> list[Json]:
        return self._needs(self.rows, "run_trials")

    @property
    def _best(self) -> Json:
        best = best_row(self._rows, self.experiment.goal)
        return self._needs(best, "run_trials")

    def show_trials(self) -> Table:
        """List the trials, the best first: parameters, metrics, seconds, units, how each ended."""
        import pandas

        costs, _ = self.costs()
        goal, listed = self.experiment.goal, []
        for number, row in enumerate(self._rows):
            line = {**row["values"], "state": row["state"]}
            line |= {n: round(v, 4) for n, v in row["metrics"].items() if "-" not in n}
            line["seconds"] = round(row["slot_seconds"], 2)
            line |= {kind: f"{parts[number]:.6f}" for kind, parts in costs.items()}
            line["why"] = row["why"]
            listed.append((goal.worth(row["metrics"]), line))
        listed.sort(key=lambda each: -each[0])
        frame = pandas.DataFrame([line for _, line in listed]).dropna(axis=1, how="all")
        if not any(frame["why"]):
            frame = frame.drop(columns="why")
        return Table(frame, notes=self.noise())

    def show_parallel(self) -> "Figure":
        """Draw each trial as a line over its parameters and its metric."""
        return kit.plots.trials_parallel(
            self._rows, self.experiment.primary, self._best["trial"], self.data.info.warning
        )

    def show_cost(self) -> "Figure":
        """Draw the metric of each trial over its seconds, or over its billing units."""
        costs, _ = self.costs()
        unit, across = "seconds in a slot", [row["slot_seconds"] for row in self._rows]
        if len(costs) == 1:
            ((unit, parts),) = costs.items()
            across = [float(part) for part in parts]
        paid = [FROM_RUN not in row for row in self._rows]  # by this run, not by one before
        rows, across = list(compress(self._rows, paid)), list(compress(across, paid))
        return kit.plots.metric_by_cost(
            rows, self.experiment.primary, across, unit, self.data.info.warning
        )

    def noise(self) -> str:
        """Return what of the differences is the spread over seeds alone; empty without seeds."""
        groups: dict[str, list[float]] = {}
        primary = self.experiment.primary
        for row in self._rows:
            if row["state"] == DONE and "seed" in row["values"]:
                rest = {name: value for name, value in row["values"].items() if name != "seed"}
                groups.setdefault(named(rest), []).append(row["metrics"][primary])
        spreads = {name: values for name, values in groups.items() if len(values) > 1}
        if not spreads:
            return ""
        lines = [
            f"{name or 'all trials'}: {primary} {statistics.mean(values):.4f} ± "
            f"{statistics.stdev(values):.4f} over {len(values)} seeds"
            for name, values in spreads.items()
        ]
        widest = max(statistics.stdev(values) for values in spreads.values())
        least = f"differences below about {2 * widest:.4f} (twice the spread) may be noise"
        lines.append(least if widest else f"the seed makes no difference to {primary}")
        return "\n".join(lines)

    def costs(self) -> tuple[dict[str, list[Decimal]], dict[str, Decimal]]:
        """Return the units of each trial by kind, and those of no trial; empty without a job."""
        if self.run.target == "local" or self.record is None:
            return {}, {}
        bill = bill_of_run(self.settings, self.record)
        text = sacct_of(self.settings, self.record, "sacct-tries.txt")
        jobs = usages(self.settings, text or sacct_of(self.settings, self.record))
        slots = sum(usage.elapsed_seconds or 0 for usage in jobs) * self.options.workers
        seconds = [row["slot_seconds"] for row in self._rows]
        job_lines = [line for line in bill.lines if line.what.startswith("job ")]
        split = {
            kind: shares(units, seconds, slots) for kind, units in slurm_kinds(job_lines).items()
        }
        return {k: parts for k, (parts, _) in split.items()}, {k: r for k, (_, r) in split.items()}

    def finish(self) -> Json:
        """Write the results, a line for the sweep and one for each trial; return its record."""
        states = [row["state"] for row in self._rows]
        self.run.more = {
            "sweep": {
                "trials": len(states),
                "done": states.count(DONE),
                "stopped_early": states.count(STOPPED),
                "failed": states.count(FAILED),
                "not_run": states.count(MISSING),
                "taken_over": sum(FROM_RUN in row for row in self._rows),
                "at_once": self.options.workers,
                "best": self._best["values"],
            }
        }
        record = super().finish()
        self._save_shares()
        self._add_lines()
        log_trials(self.run, self._rows, self.parameters.model_dump())
        return record

    def _save_shares(self) -> None:
        """Write who has which part of the job's bill; trials and rest add up to the whole."""
        costs, rest = self.costs()
        files = {}
        for kind, parts in costs.items():
            trials = {r["trial"]: str(part) for r, part in zip(self._rows, parts, strict=True)}
            whole = {"job": str(sum(parts, rest[kind])), "of no trial": str(rest[kind])}
            files[kind] = {**whole, "trials": trials}
        if files:
            self.run.save("shares.json", files)

    def _add_lines(self) -> None:
        """Add a line for each trial to the profile's list of trials, each once."""
        path = self.settings.profile_dir / TRIAL_LINES
        costs, _ = self.costs()
        with results_lock(self.settings):
            known = {(line["run"], line["trial"]) for line in read_history(path)[0]}
            for number, row in enumerate(self._rows):
                if (self.run.id, row["trial"]) in known:
                    continue
                units = {kind: str(parts[number]) for kind, parts in costs.items()}
                facts = {"experiment": self.experiment.name, "target": self.run.target}
                facts["primary"] = self.experiment.primary
                append_history(path, {"run": self.run.id, **facts, **row, "units": units})

    def show_bill(self) -> Table:
        """Show the bill of the sweep; what no trial used is its start, its end and idle slots."""
        table = super().show_bill()
        _, rest = self.costs()
        lines = [
            f"of no trial (start, end, idle slots): {value:.6f} {k}" for k, value in rest.items()
        ]
        return Table(table.frame, notes="\n".join([table.notes, *lines]))

    def show_noise(self) -> Text:
        """Show the spread over seeds."""
        return Text(self.noise() or "the sweep has no seeds: the spread is not known")
