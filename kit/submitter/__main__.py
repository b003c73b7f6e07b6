"""`python -m kit.submitter PROFILE`: the submitter that a notebook starts beside its run."""

import sys

from kit.submitter.loop import main

if __name__ == "__main__":
    main(sys.argv[1])
