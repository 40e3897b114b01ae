"""Use exported folders on audio of any kind, with pretrained interfaces.

`AudioEncoder` returns embeddings of clips, frames and patches.
`AudioClassifier` returns labels and scores. `EventDetector` returns events with
onset and offset. `SpeakerVerifier` returns the similarity of two voices. The
interfaces read `config.json` and `model.safetensors`, and execute no code from
the folder. Without a folder they use the bundled model.

Audio is converted to mono at the model's rate. Audio longer than the window of
the export is cut into windows that overlap by half. The last window may be
shorter. Windows start at multiples of the patch stride, so that the time steps
of overlapping windows coincide. Audio shorter than one analysis window of the
filterbank (25 ms) is an error. The result of a clip does not depend on its
neighbors in a batch. All results are on the CPU, in float32.

Waveforms in memory follow the same rules as files. Integers are scaled by the
range of their type (see `ssast_lobes.to_float`). Samples that are NaN, infinite
or absurdly loud are an error.
"""

from ssast_lobes.inference.classifier import (
    AudioClassifier,
    Classification,
    WindowScores,
)
from ssast_lobes.inference.encoder import AudioEncoder
from ssast_lobes.inference.event_detector import Detection, EventDetector
from ssast_lobes.inference.events import DetectedEvent, EventRule
from ssast_lobes.inference.results import write_results
from ssast_lobes.inference.verification import SpeakerVerifier, Verification

__all__ = [
    "AudioClassifier",
    "AudioEncoder",
    "Classification",
    "DetectedEvent",
    "Detection",
    "EventDetector",
    "EventRule",
    "SpeakerVerifier",
    "Verification",
    "WindowScores",
    "write_results",
]
