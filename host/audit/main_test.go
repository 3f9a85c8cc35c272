package audit_test

import (
	"testing"

	"github.com/getmonroe/monroe/host/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }
