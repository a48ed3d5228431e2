package ingress

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestStopAtTheProxyHeader: the server stops while a load balancer is saying
// who the client is, or has just said it together with the client's handshake.
func TestStopAtTheProxyHeader(t *testing.T) {
	fastest := time.Hour
	for range 20 {
		o := testOptions(&fakeQueue{})
		l := &o.Listeners[0]
		l.TLS, l.Implicit, l.TrustedNetworks = testTLS(), true, nil
		l.ProxyNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		silent, err := net.Dial("tcp", s.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		talking, err := net.Dial("tcp", s.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = tls.Client(&announced{Conn: talking}, &tls.Config{InsecureSkipVerify: true}).Handshake() // may be cut off
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		begun := time.Now()
		_ = s.Stop(ctx) // says that its time was over: the silent one had to be cut off
		cancel()
		took := time.Since(begun)
		if fastest = min(fastest, took); took > time.Minute {
			t.Errorf("stopped after %s", took)
		}
		_, _ = silent.Close(), talking.Close()
		<-ended
	}
	if fastest > 5*time.Second { // a busy machine is slow now and then, one that waits for the header always
		t.Errorf("never stopped before %s", fastest)
	}
}

// announced says the header together with the first thing that is said.
type announced struct {
	net.Conn
	isSaid bool
}

func (a *announced) Write(p []byte) (int, error) {
	if a.isSaid {
		return a.Conn.Write(p)
	}
	a.isSaid = true
	_, err := a.Conn.Write(append([]byte("PROXY TCP4 192.0.2.7 192.0.2.1 40000 465\r\n"), p...))
	return len(p), err
}
