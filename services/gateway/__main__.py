from services.gateway.app import main

raise SystemExit(main())
