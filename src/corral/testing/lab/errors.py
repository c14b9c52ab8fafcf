"""What can go wrong in the lab."""

from corral.core.errors import CorralError


class LabFailed(CorralError):
    """A part of the lab did not do what it should; the message ends with what it printed."""

    code = "lab_failed"


class LabRefused(CorralError):
    """The lab was asked for something that cannot be: an unknown machine, a setting out of range."""

    code = "lab_refused"


class LabUnsupported(CorralError):
    """This machine cannot hold a lab: it lacks a right, a program or a feature of the kernel."""

    code = "lab_unsupported"
