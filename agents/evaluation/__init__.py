"""How policies are judged: suites of workloads, runs, metrics, statistics, reports."""
