"""Modules of the scripts, which are not run themselves.

command_line.py      the options that scripts have in common
report.py            what scripts that train say and draw at the end
cases.py             benchmark.py: what is measured
peers.py             benchmark.py: who takes part
benchmark_report.py  benchmark.py: its tables and pictures
promises.py          torture.py: its checks, and how it kills a process
mutations.py         torture.py: the damaged files
resumption.py        torture.py: the runs that are killed and resumed
"""
