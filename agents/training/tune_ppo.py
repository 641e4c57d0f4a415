"""Search of hyperparameters with Optuna: each trial is a short run, judged by its duel with the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agents.training.config import TrainConfig, to_yaml
from agents.training.run_folder import make_run_folder
from traces.errors import InputError
from traces.files import atomic_write_text


def tune(config: TrainConfig, trials: int) -> str:
    """Run ``trials`` trainings under varied hyperparameters; the best settings are written as YAML.

    Args:
        config: settings of a trial but for what is searched; ``n_timesteps`` or ``budget_s`` say how long one is.
        trials: number of trials.

    Returns:
        One line that says what was found and where it is.

    Raises:
        InputError: Optuna is not installed, or a setting is malformed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("--tune needs Optuna; install it with: pip install optuna") from None
    from agents.training.trainer import train

    if trials < 1:
        raise InputError(f"--tune: {trials}; at least 1 trial is wanted")
    study_folder = make_run_folder(replace(config, name=config.name or "tune"))

    def objective(trial: optuna.Trial) -> float:
        ppo = replace(
            config.ppo,
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 2e-3, log=True),
            ent_coef=trial.suggest_float("ent_coef", 1e-5, 1e-2, log=True),
            tau_ms=trial.suggest_float("tau_ms", 50.0, 1000.0, log=True),
            gae_lambda=trial.suggest_float("gae_lambda", 0.8, 0.99),
            clip_range=trial.suggest_float("clip_range", 0.1, 0.3),
            n_epochs=trial.suggest_int("n_epochs", 2, 6),
        )
        named = replace(config, ppo=ppo, logdir=str(study_folder), name=f"trial-{trial.number}")
        result = train(named)
        if result.interrupted:
            trial.study.stop()
            raise optuna.TrialPruned
        return result.difference

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed))
    study.optimize(objective, n_trials=trials)
    if not any(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials):
        return f"no trial ended; runs: {study_folder}"
    best: Path = study_folder / "best.yaml"
    settings = replace(config, ppo=replace(config.ppo, **study.best_params), name="")
    atomic_write_text(best, to_yaml(settings))
    return f"best of {len(study.trials)} trials: {100 * study.best_value:+.2f} percentage points; settings: {best}"
