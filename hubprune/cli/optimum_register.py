"""Where optimum-cli finds ``prune``: installed, this file lies in the namespace ``optimum.commands.register``."""

from hubprune.cli.optimum_command import PruneCommand

REGISTER_COMMANDS = [PruneCommand]
