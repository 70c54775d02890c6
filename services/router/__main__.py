from services.router.app import main

raise SystemExit(main())
