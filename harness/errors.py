"""The errors that a user can cause or encounter. Everything else is a bug and keeps its traceback.

HarnessError
├── SpecError        a study or a spec is invalid: file, line, path, choices
├── DataError        a data set is missing, damaged or not what the spec says
├── RecordError      a run directory is locked, torn or belongs to another spec
├── CheckpointError  a checkpoint is damaged, does not fit or cannot be written
├── TrainingError    a training cannot continue, for example because its loss is not a number
├── DeviceError      a GPU is broken, so that the run goes on elsewhere
├── LaunchError      a job could not be submitted or stopped
└── TrackingError    the MLflow store refused or contradicts the records
"""


class HarnessError(Exception):
    """An error that the command line prints as one message, without a traceback (exit code 2)."""


class SpecError(HarnessError):
    """A study or a spec is invalid."""


class DataError(HarnessError):
    """A data set is missing, damaged or not what the spec says."""


class RecordError(HarnessError):
    """A run directory is locked, torn or belongs to another spec."""


class CheckpointError(HarnessError):
    """A checkpoint is damaged, does not fit or cannot be written."""


class TrainingError(HarnessError):
    """A training cannot continue, for example because its loss is not a number."""


class DeviceError(HarnessError):
    """A GPU is broken, so that the run goes on elsewhere."""


class LaunchError(HarnessError):
    """A job could not be submitted or stopped."""


class TrackingError(HarnessError):
    """The MLflow store refused or contradicts the records."""
