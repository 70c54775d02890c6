from services.kv_offload.app import main

raise SystemExit(main())
