"""`python -m dsv3rt` is `dsv3rt`."""

from dsv3rt.cli.main import main

main()
