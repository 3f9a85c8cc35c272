package runner_test

import (
	"testing"

	"github.com/getmonroe/monroe/host/store/storetest"
)

func TestMain(m *testing.M) {
	serveDisk()
	storetest.Main(m)
}
