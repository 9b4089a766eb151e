"""Open-loop load tests of FewSeg: scenarios, measurements, floors, reports."""

import os
from typing import Final

BLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"
#: Whether it was this package that set it; servers under test must not inherit that.
SET_BLAS_THREADS: Final = BLAS_THREADS not in os.environ

# Read when numpy is first imported. Its matrix products here are too small to share between
# threads, and on a busy machine waiting for a second thread takes twenty times their own time.
os.environ.setdefault(BLAS_THREADS, "1")
