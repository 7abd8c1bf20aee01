from appliance.cli.app import main

main()
