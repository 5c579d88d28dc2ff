import time

import jobs

jobs.note("report", None, time.time())
