"""python -m llava_min.check -m MODEL: where does this code first differ from transformers?"""

import sys

from .compare import main

sys.exit(main())
