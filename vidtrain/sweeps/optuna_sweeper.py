"""hydra/sweeper=optuna: a search with a persistent Optuna study, which may end trials early."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidtrain.config.overrides import first_value
from vidtrain.errors import UserError
from vidtrain.runs.folder import FREE
from vidtrain.sweeps.base import TrialSweeper
from vidtrain.sweeps.record import Trial, changed_settings
from vidtrain.sweeps.status import ENDED, TrialState, trial_state


class OptunaSweeper(TrialSweeper):
    """`n_trials` trials in all, each asked of a persistent Optuna study, which ends those early that do worse than
    others did (`pruner`; null: none). `storage` is a database's URL, null a file in the sweep's folder."""

    def __init__(
        self,
        n_trials: int,
        sampler: DictConfig,
        pruner: DictConfig | None,
        n_jobs: int = 1,
        seed: int | None = 0,
        storage: str | None = None,
        retry: bool = False,
        params: Mapping[str, Any] | None = None,
    ):
        super().__init__(n_jobs, retry, params or {})
        self._n_trials, self._seed, self._storage = n_trials, seed, storage
        self._sampler, self._pruner = sampler, pruner

    def check_said(self, first: DictConfig) -> None:
        from vidtrain.build import parts as build
        from vidtrain.sweeps import study as sweep_study

        if "seed" in self.said and self.said["seed"].is_sweep_override():
            raise UserError(
                "seed: Optuna would search for the luckiest seed. Search with one, and run what it finds with several: "
                "hydra/sweeper=grid seed=0,1,2"
            )
        self._space = {
            key: sweep_study.distribution(each) for key, each in self.said.items() if each.is_sweep_override()
        }
        build.instantiate_component(self._pruner)  # a fault in it shows before the first trial

    def run_missing(self) -> None:
        from vidtrain.sweeps import study as sweep_study

        record, folder = self.record, self.folder
        fixed = [first_value(each) for each in self.said.values() if not each.is_sweep_override()]
        space = {key: self.said[key].get_value_string().replace(" ", "") for key in self._space}
        if record.trials:
            known = [
                [each for each in one.overrides if each.partition("=")[0] not in space]
                for one in record.trials
            ]
            changed = changed_settings(known, [fixed], FREE)
            changed += [
                f"{key}: {_known(record.space, key)} -> {_known(space, key)}"
                for key in {**record.space, **space}
                if _known(record.space, key) != _known(space, key)
            ]
            if changed:
                self.refuse(changed)
        storage = self._storage or sweep_study.sqlite_file(folder / "study.db")
        study = sweep_study.open_study(folder.name, storage, record.direction)
        record.space, record.planned = space, max(self._n_trials, len(record.trials))
        record.write(folder)

        def known_trial(number: int, drawn: Sequence[str]) -> Trial:
            for each in record.trials:
                if each.number == number:
                    return each
            trial = self.add([*fixed, *drawn], number)
            record.write(folder)
            return trial

        def ended(state: TrialState) -> None:
            if state.state in ENDED:
                sweep_study.tell(study, state.number, state.objective, state.state)

        def missing() -> Iterator[Trial]:
            for number, drawn in list(sweep_study.unsettled(study, self._space)):
                trial = known_trial(number, drawn)
                if self.is_to_run(trial):
                    yield trial
                else:
                    ended(trial_state(folder, trial))
            # Optuna has no way back from failed: one that is run again counts, but not for the search
            for trial in [each for each in record.trials if self.retry]:
                if self.is_to_run(trial):
                    yield trial
            while len(record.trials) < record.planned:
                yield known_trial(*sweep_study.ask(study, self._space, self._sampler, self._seed))

        done = sum(trial_state(folder, each).state in ENDED for each in record.trials)
        self.console.info(f"sweep {folder}: {record.planned} trials of a search; {done} have ended")
        pruning = None
        if self._pruner is not None:
            pruner = OmegaConf.to_container(self._pruner, resolve=True)
            pruning = {"storage": storage, "study": folder.name, "pruner": pruner}
        self.run_all(missing(), ended, pruning)


def _known(space: Mapping[str, str], key: str) -> str:
    return space[key] if key in space else "not searched"
