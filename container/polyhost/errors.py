"""
Errors that end a command, and the exit code they end it with.

* PolyhostError         1  the base; its text says what to change
  x InvalidSetting      2  a flag or an environment variable
  x MissingDependency   3  something that a package manager installs
  x PortInUse           4
  x StartFailed         5  the engine did not come up
  x ArchiveRefused      1  an archive that would harm, or is none
  x DeployFailed        6  AWS, or a server in its place, refused, did not answer, or did not get it done
"""

from __future__ import annotations


class PolyhostError(Exception):
    exit_code = 1


class InvalidSetting(PolyhostError):
    exit_code = 2


class MissingDependency(PolyhostError):
    exit_code = 3


class PortInUse(PolyhostError):
    exit_code = 4


class StartFailed(PolyhostError):
    exit_code = 5


class ArchiveRefused(PolyhostError):
    exit_code = 1


class DeployFailed(PolyhostError):
    exit_code = 6
