from polyhost.cli import main

main()
