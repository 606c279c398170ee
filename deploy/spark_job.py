"""What spark-submit runs: the command line of Profilehouse, as `stream --engine spark`."""

from profilehouse.cli import main

if __name__ == "__main__":
    main()
