"""
Errors that end a command, and the exit code they end it with. `advice` is what docs/troubleshooting.md says of each.

* PolyhostError         1  the base; its text says what to change
  x InvalidSetting      2  a flag or an environment variable
  x MissingDependency   3  something that a package manager installs
  x PortInUse           4
  x StartFailed         5  the engine did not come up
  x ArchiveRefused      1  an archive that would harm, or is none
  x DeployFailed        6  AWS, or a server in its place, refused, did not answer, or did not get it done
  x EnvironmentFailed   7  a Python environment could not be built, or is not as it should be
"""

from __future__ import annotations


class PolyhostError(Exception):
    exit_code = 1
    advice = "The engine ended by itself, or an archive is refused. The text says what to change."


class InvalidSetting(PolyhostError):
    exit_code = 2
    advice = "A setting is wrong. Correct it: a restart does not help."


class MissingDependency(PolyhostError):
    exit_code = 3
    advice = "Something is not installed. The text names the command that installs it."


class PortInUse(PolyhostError):
    exit_code = 4
    advice = "The port is taken. Stop what listens there, or choose another with --port."


class StartFailed(PolyhostError):
    exit_code = 5
    advice = "A folder, the state, the engine or a model that must be there cannot be used. Mend what the text names."


class ArchiveRefused(PolyhostError):
    exit_code = 1


class DeployFailed(PolyhostError):
    exit_code = 6
    advice = "AWS refused, did not answer, or did not get it done. Run the command again when the cause is mended."


class EnvironmentFailed(PolyhostError):
    exit_code = 7
    advice = "A Python environment could not be built, or is not as it should be. Its builder's words are above."
