"""Every error a person can act on, and the exit code it ends a command with.

    FedroundsError
    ├── StudyError          10  a study, operations or site file says something it cannot mean
    ├── DataContractError   11  a site's table does not keep to the study's dictionary
    ├── GateHalt            12  a gate failed under the policy `halt`
    ├── QuorumError         13  too few sites are left to close the round
    ├── UpdateRejected      14  a message is damaged, foreign, out of turn or not finite
    ├── StateError          15  the state folder cannot be used, another runner holds the study, or it does not stand as asked
    │   └── StudyBusy           another runner holds the study
    ├── ServiceError        16  Prefect, MLflow or a helper process did not do its part
    ├── DriftHold           17  drift beyond the study's limit holds the study
    ├── LogBroken           18  the audit log, or what it is about, is not as it was signed
    └── NoFit               19  the patients of all sites do not settle what is asked of them: columns or outcomes leave it open

Each message is one line: what was expected, what was found, where, what to do. Never a patient value: names and counts only.
Anything else that escapes is a bug and shows a traceback.
"""


class FedroundsError(Exception):
    """Shown to people as one line, without a traceback."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class StudyError(FedroundsError):
    """A study, operations or site file says something it cannot mean."""

    exit_code = 10


class DataContractError(FedroundsError):
    """A site's table does not keep to the study's dictionary."""

    exit_code = 11


class GateHalt(FedroundsError):
    """A site failed its gate and the policy is to halt."""

    exit_code = 12


class QuorumError(FedroundsError):
    """Too few sites took part to close the round."""

    exit_code = 13


class UpdateRejected(FedroundsError):
    """A message is damaged, foreign, out of turn or not finite."""

    exit_code = 14


class StateError(FedroundsError):
    """The state folder cannot be used, another runner holds the study, or it does not stand as an act expects."""

    exit_code = 15


class StudyBusy(StateError):
    """Another runner works on the study; wait until it ends."""


class ServiceError(FedroundsError):
    """Prefect, MLflow or a helper process did not do its part."""

    exit_code = 16


class DriftHold(FedroundsError):
    """Drift beyond the study's limit holds the study."""

    exit_code = 17


class LogBroken(FedroundsError):
    """The audit log, or what it is about, is not as it was signed."""

    exit_code = 18


class NoFit(FedroundsError):
    """What is to be fitted has no one answer: a column follows from others, an outcome from a column, or it does not converge."""

    exit_code = 19
