"""Where optimum-cli finds ``prune``: it loads every file of this namespace, which therefore has no ``__init__.py``."""

from hubprune.cli.optimum_command import PruneCommand

REGISTER_COMMANDS = [PruneCommand]
