from services.kv_index.app import main

raise SystemExit(main())
