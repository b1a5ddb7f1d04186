from benchmarks.locust.run import main

main()
