from services.decode_worker.app import main

raise SystemExit(main())
