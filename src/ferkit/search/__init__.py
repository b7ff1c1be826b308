"""Hyperparameter search: an Optuna study in a folder, whose trials Ray places on cores, GPUs and nodes."""

import optuna

# Optuna prints a line for every trial; ferkit has its own callbacks for that.
optuna.logging.set_verbosity(optuna.logging.ERROR)
