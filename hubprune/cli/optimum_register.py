"""Where optimum-cli finds ``prune``: an installation puts this file into the namespace ``optimum.commands.register``."""

from hubprune.cli.optimum_command import PruneCommand

REGISTER_COMMANDS = [PruneCommand]
