"""The commands, and what has to be settled before NumPy is imported for one."""

import os

# NumPy's BLAS starts a thread per processor at import, and ends the program with a traceback where the system grants
# none. No command multiplies large matrices with it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
