"""`python -m lowtax`, which launchers call: `torchrun --nproc-per-node 4 -m lowtax train ...`."""

from lowtax.cli.main import main

if __name__ == "__main__":
    main()
