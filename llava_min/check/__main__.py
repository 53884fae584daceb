"""python -m llava_min.check -m MODEL: show where this code first differs from transformers."""

import sys

from .compare import main

sys.exit(main())
