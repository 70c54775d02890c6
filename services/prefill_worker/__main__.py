from services.prefill_worker.app import main

raise SystemExit(main())
