import os

# The networks of the tests are so small that a second thread costs more than it gives.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that tests start
