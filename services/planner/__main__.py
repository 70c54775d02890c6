from services.planner.app import main

raise SystemExit(main())
