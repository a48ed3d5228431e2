package config

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestS4_25_Environment: a variable takes the place of the file's setting, also where there is no file; every setting has one.
func TestS4_25_Environment(t *testing.T) {
	text := []byte("hostname: of.file.test\ndelivery:\n  max_age: 5d\n  routes:\n    - domains: [a.test]\n      via: smtp:[of.file.test]:25\n")
	for _, text := range [][]byte{text, nil} {
		c, err := parse("f.yaml", text, []string{
			"POSTROAD__HOSTNAME=of.variable.test", "POSTROAD__DELIVERY__MAX_AGE=4d", "POSTROAD__DATA_DIR=", "POSTROAD_PORT=tcp://10.0.0.1:25", "PATH=/bin",
			"POSTROAD__ROLES=ingress, signer", "POSTROAD__QUEUE__URLS=nats://a.test:4222,nats://b.test:4222", "POSTROAD__QUEUE__REPLICAS=3",
			`POSTROAD__DELIVERY__ROUTES=[{domains: ["*"], via: "smtp:[of.variable.test]:25"}]`,
		})
		if err != nil {
			t.Fatal(err)
		}
		if c.Hostname != "of.variable.test" || c.Delivery.MaxAge != 4*24*time.Hour || c.DataDir != Default().DataDir || c.Queue.Replicas != 3 ||
			!slices.Equal(c.Roles, []Role{"ingress", "signer"}) || !slices.Equal(c.Queue.URLs, []string{"nats://a.test:4222", "nats://b.test:4222"}) ||
			len(c.Delivery.Routes) != 1 || c.Delivery.Routes[0].Via != "smtp:[of.variable.test]:25" {
			t.Errorf("%q: got %+v", text, c)
		}
	}
	leavesOf(reflect.ValueOf(&Config{}).Elem(), "", func(setting string, _ reflect.Value) {
		back := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variableOf(setting), variablePrefix), "__", "."))
		if back != setting {
			t.Errorf("%s has the variable %s, which is %s", setting, variableOf(setting), back)
		}
	})
}

func TestEnvironmentFaults(t *testing.T) {
	_, err := parse("f.yaml", []byte("hostname: a.test\ndelivery:\n  max_age: soon\n"), []string{
		"POSTROAD__DELIVERY__MAX_AGE=4", "POSTROAD__DELIVERY__MAXAGE=4d", "POSTROAD__INGRESS__LISTENERS=:25",
		"POSTROAD__DELIVERY__ROUTES=[{domains: [a.test", "POSTROAD__QUEUE__URLS=gopher://a.test",
	})
	faults, ok := errors.AsType[Errors](err)
	if !ok {
		t.Fatalf("got %v, want a list of faults", err)
	}
	got := faults.Error()
	for _, want := range []string{
		"f.yaml:3: delivery.max_age: ",
		"environment variable POSTROAD__DELIVERY__MAX_AGE: delivery.max_age: ",
		"environment variable POSTROAD__DELIVERY__MAXAGE: there is no such setting; did you mean POSTROAD__DELIVERY__MAX_AGE?",
		"environment variable POSTROAD__INGRESS__LISTENERS: ingress.listeners: is a list of sections",
		"environment variable POSTROAD__DELIVERY__ROUTES: delivery.routes: this is not YAML",
		"environment variable POSTROAD__QUEUE__URLS: queue.urls",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
